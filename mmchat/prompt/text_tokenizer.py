"""Text as tokens, where people's words never form a control token.

The text is tokenized as a whole, as transformers tokenizes a rendered conversation. It is cut only where
people's words would form a control token, or where a token would extend over a place that has to lie
between two tokens. Both sides of a cut are tokenized separately.
"""

import bisect
from collections.abc import Sequence
from typing import Any

from mmchat.errors import ModelError

Token = tuple[int, int, int]
"""(id, start, end): a token that covers the characters from `start` to `end`."""

# Some tokenizers put a blank before the first word of a string. So a stretch is tokenized with one of
# these before it, whose token is dropped: the first one that does not merge with the stretch.
_PREFIXES = ("\n", "x", "1")


def tokenizer_name(tokenizer: Any) -> str:
    """What error messages call the model of `tokenizer`."""
    return str(getattr(tokenizer, "name_or_path", "") or "This model")


class TextTokenizer:
    """The tokenizer of one model.

    `added` has the texts of its added tokens by id. `controls` are the ids of the special and added tokens
    that have a meaning: those for white space (runs of blanks or newlines) are ordinary text.

    Raises ModelError if the tokenizer has no tokenizer.json.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{tokenizer_name(tokenizer)} has no tokenizer.json: convert its tokenizer to one first."
            )
        # The file may turn truncation on, but a conversation is shortened by turns, never by tokens.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        decoder: dict[int, Any] = tokenizer.added_tokens_decoder
        self.added = {token: str(added.content) for token, added in decoder.items()}
        self.controls = {
            token for token, text in self.added.items() if text.replace("\u2581", " ").strip()
        } | set(tokenizer.all_special_ids)
        self._unknown: int | None = tokenizer.unk_token_id

    def tokens(
        self, text: str, people: Sequence[tuple[int, int]], edges: Sequence[int]
    ) -> list[Token]:
        """The tokens of `text`.

        `people` has the spans (start, end) of people's words, in order: none of their characters becomes
        part of a control token. `edges` are places over which no token extends.
        """
        starts = [start for start, _ in people]
        edges = sorted(edges)
        cuts: set[int] = set()
        while True:
            tokens = self._tokens_between(text, sorted(cuts))
            done = True
            for token, start, end in tokens:
                at = bisect.bisect_right(edges, start)
                if at < len(edges) and edges[at] < end:
                    done = False
                    cuts.add(edges[at])
                if token not in self.controls:
                    continue
                left, right = strip_span(text, start, end)
                person = _first_overlap(people, starts, left, right)
                if person is None or self._is_unknown(token, text[left:right]):
                    continue
                done = False
                # Inside the token, and in people's words, so that it cannot form again.
                cut = max(left + 1, person)
                if cut < right:
                    cuts.add(cut)
                else:
                    text = text[:left] + "\ufffd" * (right - left) + text[right:]
            if done:
                return tokens

    def _is_unknown(self, token: int, words: str) -> bool:
        """Whether `token` stands for words that the vocabulary cannot spell, which forges nothing."""
        return words == "\ufffd" or (token == self._unknown and words != self.added.get(token))

    def _tokens_between(self, text: str, cuts: list[int]) -> list[Token]:
        """The tokens of `text`, cut at `cuts`."""
        self._backend.encode_special_tokens = False
        tokens: list[Token] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            tokens += self._stretch(text[start:end], start)
        return tokens

    def _stretch(self, text: str, start: int) -> list[Token]:
        """The tokens of `text`, which begins at the character `start` of the whole."""
        for prefix in _PREFIXES if start else ():
            encoding = self._backend.encode(prefix + text, add_special_tokens=False)
            if not any(a < 1 < b for a, b in encoding.offsets):
                return [
                    (token, a + start - 1, b + start - 1)
                    for token, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
                    if a >= 1
                ]
        encoding = self._backend.encode(text, add_special_tokens=False)
        return [
            (token, a + start, b + start)
            for token, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
        ]


def strip_span(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space at its sides, which some added tokens include."""
    inner = text[start:end]
    left = len(inner) - len(inner.lstrip())
    return (start + left, start + len(inner.rstrip())) if inner.strip() else (start, end)


def _first_overlap(
    people: Sequence[tuple[int, int]], starts: Sequence[int], start: int, end: int
) -> int | None:
    """Where the first span of `people` begins that shares a character with the span start..end."""
    at = max(bisect.bisect_right(starts, start) - 1, 0)
    for left, right in people[at:]:
        if left >= end:
            return None
        if right > start and right > left:
            return left
    return None
