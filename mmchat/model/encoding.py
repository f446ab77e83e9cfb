"""A conversation as tokens.

Encoding is the same for training and for answering: the tokenizer's own chat
template, people's words as plain text wherever they stand, pictures as their
placeholder tokens in the place where the person put them, and a mask of what
the model has to produce.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from mmchat.errors import ModelError
from mmchat.model.template import PICTURE, TEXT, ChatTemplate, Item, Message, Piece


class ChatTurn(Protocol):
    """One turn of a conversation; a part is a text, or a picture (with `sha256` and `data`)."""

    @property
    def role(self) -> str: ...
    @property
    def parts(self) -> Sequence[str | Any]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens.

    `answer_mask` is True on what the model has to produce: each answer and the
    token that ends it. `images` are the spans (start, length) of the pictures'
    placeholder tokens, in order.
    """

    input_ids: list[int]
    answer_mask: list[bool]
    images: list[tuple[int, int]]


def encode_chat(
    tokenizer: Any,
    turns: Sequence[ChatTurn],
    *,
    image_tokens: Sequence[Sequence[int] | str] = (),
    add_generation_prompt: bool = False,
    picture_mark: str | None = None,
) -> Encoded:
    """Encodes `turns` with the tokenizer's chat template.

    People's words (of every role) can never form a special or added token,
    and tokenize as they would in the stock rendering otherwise.

    `image_tokens` holds, for each picture in order, its placeholder tokens, or
    the text that a stock processor writes for it (special tokens in it count).
    Ids need one added token of the tokenizer among them. `picture_mark` is
    what the template itself writes for a picture; by default the first added
    token of the first picture.

    Raises ModelError where the template is missing, or fails on the conversation.
    """
    return _encoder(tokenizer, _template_of(tokenizer)).encode(
        turns, image_tokens, picture_mark, add_generation_prompt
    )


@dataclass(frozen=True, slots=True)
class _Said:
    role: str
    parts: tuple[str, ...]


def answer_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after an answer, if it writes one.

    Raises ModelError where there is no usable template.
    """
    turns = [_Said("user", ("a",)), _Said("assistant", ("a",))]
    encoded = encode_chat(tokenizer, turns)
    last = max((i for i, asked in enumerate(encoded.answer_mask) if asked), default=None)
    if last is None or encoded.input_ids[last] not in tokenizer.added_tokens_decoder:
        return None
    return encoded.input_ids[last]


def _template_of(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            f"{_name_of(tokenizer)} has no chat template, so mmchat does not know how to talk to "
            "it: choose a chat or instruct model, or put a chat_template.jinja into its folder."
        )
    template: str = tokenizer.get_chat_template()
    return template


def _name_of(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "This model")


@dataclass(frozen=True, slots=True)
class _Region:
    """Characters `start` to `end` of the written conversation."""

    start: int
    end: int
    kind: str
    index: int = -1


class _Encoder:
    """Writes a rendered conversation and tokenizes it."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{_name_of(tokenizer)} has no tokenizer.json: convert its tokenizer to one first."
            )
        # A file may ask for truncation; a conversation is cut by turns, never by tokens.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template = ChatTemplate(tokenizer, template, _name_of(tokenizer))
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self._added = {i: str(token.content) for i, token in added.items()}
        # Added tokens of white space (runs of blanks or newlines) are ordinary text.
        self._controls = {
            i for i, text in self._added.items() if text.replace("\u2581", " ").strip()
        } | set(tokenizer.all_special_ids)
        self._unknown: int | None = tokenizer.unk_token_id
        bos: str | None = tokenizer.bos_token
        # Which tokenizers begin by themselves with BOS is asked, not read from a flag.
        begins = bos is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
        self._bos = bos if begins else None

    def encode(
        self,
        turns: Sequence[ChatTurn],
        image_tokens: Sequence[Sequence[int] | str],
        mark: str | None,
        add_generation_prompt: bool,
    ) -> Encoded:
        shape, texts, answers, pictures = _shape_of(turns)
        if pictures != len(image_tokens):
            raise ValueError(f"{pictures} pictures, but tokens of {len(image_tokens)}")
        written = [
            tokens if isinstance(tokens, str) else self._stand_in(tokens) for tokens in image_tokens
        ]
        if mark is None and image_tokens and not isinstance(image_tokens[0], str):
            mark = written[0]
        rendering = self._template.render(shape, mark, add_generation_prompt)
        text, regions = _write(rendering.pieces, texts, written)
        if self._bos and not text.startswith(self._bos):
            text = self._bos + text
            regions = [_Region(0, len(self._bos), "literal")] + [
                _Region(r.start + len(self._bos), r.end + len(self._bos), r.kind, r.index)
                for r in regions
            ]
        tokens = self._tokenize(text, [r for r in regions if r.kind == TEXT])
        asked = self._asked(text, regions, answers, rendering.answer_start, tokens)
        return _join(tokens, asked, regions, image_tokens)

    def _stand_in(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            if token in self._added:
                return self._added[token]
        raise ValueError("a picture's tokens hold no added token of the tokenizer")

    def _tokenize(self, text: str, people: list[_Region]) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of `text`; none of `people`'s forms a control token.

        Where one would, the text is cut inside it and the two sides are tokenized apart.
        """
        starts = [region.start for region in people]
        cuts: set[int] = set()
        while True:
            tokens = self._tokenize_cut(text, sorted(cuts))
            forged = False
            for token, start, end in tokens:
                if token not in self._controls:
                    continue
                left, right = _core(text, start, end)
                person = _overlap(people, starts, left, right)
                if person is None or self._is_unknown(token, text[left:right]):
                    continue
                forged = True
                # Inside the token, and where a person wrote, so that it cannot form again.
                cut = max(left + 1, person.start)
                if cut < right:
                    cuts.add(cut)
                else:
                    text = text[:left] + "\ufffd" * (right - left) + text[right:]
            if not forged:
                return tokens

    def _is_unknown(self, token: int, words: str) -> bool:
        """Words that the vocabulary cannot spell are no forgery of the unknown token."""
        return words == "\ufffd" or (token == self._unknown and words != self._added.get(token))

    def _tokenize_cut(self, text: str, cuts: list[int]) -> list[tuple[int, int, int]]:
        self._backend.encode_special_tokens = False
        tokens: list[tuple[int, int, int]] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            stretch = text[start:end]
            encoding = self._backend.encode(
                "\n" + stretch if start else stretch, add_special_tokens=False
            )
            shift = start
            ids, offsets = encoding.ids, encoding.offsets
            if start:
                # Some tokenizers put a blank before the first word of a string: a newline takes
                # that place, and is left out again.
                if any(a < 1 < b for a, b in offsets):
                    encoding = self._backend.encode(stretch, add_special_tokens=False)
                    ids, offsets = encoding.ids, encoding.offsets
                else:
                    kept = [(i, o) for i, o in zip(ids, offsets, strict=True) if o[0] >= 1]
                    ids, offsets = [i for i, _ in kept], [o for _, o in kept]
                    shift = start - 1
            tokens += [(i, a + shift, b + shift) for i, (a, b) in zip(ids, offsets, strict=True)]
        return tokens

    def _asked(
        self,
        text: str,
        regions: list[_Region],
        answers: set[int],
        answer_start: str,
        tokens: list[tuple[int, int, int]],
    ) -> list[tuple[int, int]]:
        """The stretches of characters that the model has to produce."""
        ends = [end for token, _, end in tokens if token in self._controls]
        asked: list[tuple[int, int]] = []
        for number, region in enumerate(regions):
            if region.kind != TEXT or region.index not in answers:
                continue
            start, end = region.start, region.end
            before = regions[number - 1] if number else None
            if before is not None and before.kind == "literal" and answer_start:
                words = text[before.start : before.end]
                if words.startswith(answer_start):
                    start = before.start + len(answer_start)
            after = regions[number + 1] if number + 1 < len(regions) else None
            if after is not None and after.kind == "literal":
                at = bisect.bisect_right(ends, after.start)
                if at < len(ends) and ends[at] <= after.end:
                    end = ends[at]
            asked.append((start, end))
        return asked


_encoder = lru_cache(maxsize=4)(_Encoder)


def _shape_of(
    turns: Sequence[ChatTurn],
) -> tuple[tuple[Message, ...], list[str], set[int], int]:
    """(the shape, the texts, which of them are answers, how many pictures)."""
    shape: list[Message] = []
    texts: list[str] = []
    answers: set[int] = set()
    pictures = 0
    for turn in turns:
        items: list[Item] = []
        for part in turn.parts:
            if not isinstance(part, str):
                items.append((PICTURE, pictures))
                pictures += 1
            elif items and items[-1][0] == TEXT:
                texts[-1] += part
            elif part:
                items.append((TEXT, len(texts)))
                texts.append(part)
        if not items:
            items.append((TEXT, len(texts)))
            texts.append("")
        if turn.role == "assistant":
            answers.update(
                item[1] for item in items if item[0] == TEXT and not isinstance(item, str)
            )
        shape.append((turn.role, tuple(items)))
    return tuple(shape), texts, answers, pictures


def _write(
    pieces: Sequence[Piece], texts: Sequence[str], pictures: Sequence[str]
) -> tuple[str, list[_Region]]:
    words: list[str] = []
    regions: list[_Region] = []
    at = 0
    for piece in pieces:
        if piece.kind == "literal":
            word = piece.text
        elif piece.kind == "picture":
            word = pictures[piece.index]
        else:
            # A lone surrogate is no text: no tokenizer takes it.
            word = texts[piece.index].encode("utf-8", "replace").decode("utf-8")
            word = word.lstrip() if piece.strip_left else word
            word = word.rstrip() if piece.strip_right else word
        regions.append(_Region(at, at + len(word), piece.kind, piece.index))
        words.append(word)
        at += len(word)
    return "".join(words), regions


def _core(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space that some added tokens take in at their sides."""
    inner = text[start:end]
    left = len(inner) - len(inner.lstrip())
    return (start + left, start + len(inner.rstrip())) if inner.strip() else (start, end)


def _overlap(
    regions: Sequence[_Region], starts: Sequence[int], start: int, end: int
) -> _Region | None:
    """The first region that shares a character with start..end."""
    at = max(bisect.bisect_right(starts, start) - 1, 0)
    for region in regions[at:]:
        if region.start >= end:
            return None
        if region.end > start and region.end > region.start:
            return region
    return None


def _join(
    tokens: Sequence[tuple[int, int, int]],
    asked: Sequence[tuple[int, int]],
    regions: Sequence[_Region],
    image_tokens: Sequence[Sequence[int] | str],
) -> Encoded:
    pictures = [region for region in regions if region.kind == PICTURE]
    ids: list[int] = []
    mask: list[bool] = []
    spans: list[tuple[int, int]] = []
    picture = answer = 0
    for token, start, end in tokens:
        last = max(end, start + 1)
        while picture < len(pictures) and pictures[picture].end <= start:
            picture += 1
        while answer < len(asked) and asked[answer][1] <= start:
            answer += 1
        inside = picture < len(pictures) and pictures[picture].start < last
        if inside:
            wanted = image_tokens[picture]
            first = len(spans) == picture
            if isinstance(wanted, str):
                ids.append(token)
                mask.append(False)
                begin = len(ids) - 1 if first else spans[picture][0]
                span = (begin, len(ids) - begin)
                spans[picture:] = [span]
            elif first:
                spans.append((len(ids), len(wanted)))
                ids += wanted
                mask += [False] * len(wanted)
            continue
        ids.append(token)
        mask.append(answer < len(asked) and asked[answer][0] < last)
    return Encoded(ids, mask, spans)
