"""Text as tokens, where some of it is people's and forms no control token.

The text is tokenized as a whole, as the stock rendering of a conversation is.
Only where people's words would form a control token, or a token would lie over
a place that has to stand between two, it is cut there and its sides are tokenized
apart.
"""

import bisect
from collections.abc import Sequence
from typing import Any

from mmchat.errors import ModelError

Token = tuple[int, int, int]
"""(id, start, end): a token of the characters start to end."""

# What stands before a stretch while it is tokenized, and is left out again: some tokenizers put a
# blank before the first word of a string. The first of these is taken that forms no token with it.
_BEFORE = ("\n", "x", "1")


def name_of(tokenizer: Any) -> str:
    """What to call the model of `tokenizer` in a sentence."""
    return str(getattr(tokenizer, "name_or_path", "") or "This model")


class TextTokenizer:
    """The tokenizer of one model.

    `added` are the texts of its added tokens, `controls` the ids of those that
    mean something: white space (runs of blanks or newlines) is ordinary text.

    Raises ModelError where the tokenizer has no tokenizer.json.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{name_of(tokenizer)} has no tokenizer.json: convert its tokenizer to one first."
            )
        # A file may ask for truncation; a conversation is cut by turns, never by tokens.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        found: dict[int, Any] = tokenizer.added_tokens_decoder
        self.added = {i: str(token.content) for i, token in found.items()}
        self.controls = {
            i for i, text in self.added.items() if text.replace("\u2581", " ").strip()
        } | set(tokenizer.all_special_ids)
        self._unknown: int | None = tokenizer.unk_token_id

    def tokens(
        self, text: str, people: Sequence[tuple[int, int]], edges: Sequence[int]
    ) -> list[Token]:
        """The tokens of `text`.

        None of the characters in `people` (start, end; in order) is part of a control token, and
        no token lies over an edge.
        """
        starts = [start for start, _ in people]
        edges = sorted(edges)
        cuts: set[int] = set()
        while True:
            tokens = self._cut(text, sorted(cuts))
            whole = True
            for token, start, end in tokens:
                at = bisect.bisect_right(edges, start)
                if at < len(edges) and edges[at] < end:
                    whole = False
                    cuts.add(edges[at])
                if token not in self.controls:
                    continue
                left, right = core(text, start, end)
                person = _overlap(people, starts, left, right)
                if person is None or self._is_unknown(token, text[left:right]):
                    continue
                whole = False
                # Inside the token, and where a person wrote, so that it cannot form again.
                cut = max(left + 1, person)
                if cut < right:
                    cuts.add(cut)
                else:
                    text = text[:left] + "\ufffd" * (right - left) + text[right:]
            if whole:
                return tokens

    def _is_unknown(self, token: int, words: str) -> bool:
        """Words that the vocabulary cannot spell are no forgery of the unknown token."""
        return words == "\ufffd" or (token == self._unknown and words != self.added.get(token))

    def _cut(self, text: str, cuts: list[int]) -> list[Token]:
        """The tokens of `text`, cut at `cuts`."""
        self._backend.encode_special_tokens = False
        tokens: list[Token] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            tokens += self._stretch(text[start:end], start)
        return tokens

    def _stretch(self, text: str, start: int) -> list[Token]:
        """The tokens of `text`, which begins at `start`."""
        for before in _BEFORE if start else ():
            encoding = self._backend.encode(before + text, add_special_tokens=False)
            if not any(a < 1 < b for a, b in encoding.offsets):
                return [
                    (i, a + start - 1, b + start - 1)
                    for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
                    if a >= 1
                ]
        encoding = self._backend.encode(text, add_special_tokens=False)
        return [
            (i, a + start, b + start)
            for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
        ]


def core(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space that some added tokens take in at their sides."""
    inner = text[start:end]
    left = len(inner) - len(inner.lstrip())
    return (start + left, start + len(inner.rstrip())) if inner.strip() else (start, end)


def _overlap(
    people: Sequence[tuple[int, int]], starts: Sequence[int], start: int, end: int
) -> int | None:
    """Where the first region of `people` begins that shares a character with start..end."""
    at = max(bisect.bisect_right(starts, start) - 1, 0)
    for left, right in people[at:]:
        if left >= end:
            return None
        if right > start and right > left:
            return left
    return None
