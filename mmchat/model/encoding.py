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
from mmchat.model.template import (
    PICTURE,
    TEXT,
    Answer,
    ChatTemplate,
    Item,
    Message,
    Piece,
    Trim,
)
from mmchat.model.tokenizing import TextTokenizer, Token, core, name_of


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
    token that ends it. Before the first of them stands, token by token, what
    the same conversation up to there is with a generation prompt. `images` are the
    spans (start, length) of the pictures' placeholder tokens, in order.

    `unasked` are the turns whose answers the mask leaves out: asked there, the
    model has to produce something else than is written here. Qwen3 writes a last answer
    behind a thought and an earlier one without; templates without an end token
    end only the last. Such an answer is learned from `turns[: number + 1]`.
    """

    input_ids: list[int]
    answer_mask: list[bool]
    images: list[tuple[int, int]]
    unasked: tuple[int, ...] = ()


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
    and tokenize as they would in the stock rendering otherwise, with one
    exception: no token lies over the beginning of an answer, as a newline of the template
    and one of the answer may form, for the model is asked to begin there.

    A last answer that the template does not end is ended: by what would follow
    it up to the next control token (GLM), else by the tokenizer's EOS. A thought that the
    generation prompt opens and the template does not write (DeepSeek R1, QwQ)
    stands closed before the last answer.

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
            f"{name_of(tokenizer)} has no chat template, so mmchat does not know how to talk to "
            "it: choose a chat or instruct model, or put a chat_template.jinja into its folder."
        )
    template: str = tokenizer.get_chat_template()
    return template


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
        self._tokens = TextTokenizer(tokenizer)
        added = self._tokens.added
        controls = [added[i] for i in sorted(self._tokens.controls) if added.get(i)]
        self._template = ChatTemplate(tokenizer, template, name_of(tokenizer), controls)
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
        shape, texts, pictures = _shape_of(turns)
        if pictures != len(image_tokens):
            raise ValueError(f"{pictures} pictures, but tokens of {len(image_tokens)}")
        written = [
            tokens if isinstance(tokens, str) else self._stand_in(tokens) for tokens in image_tokens
        ]
        if mark is None and image_tokens and not isinstance(image_tokens[0], str):
            mark = written[0]
        rendering = self._template.render(shape, mark, add_generation_prompt)
        text, regions = _write(rendering.pieces, texts, written, self._bos)
        people = [(r.start, r.end) for r in regions if r.kind == TEXT]
        places = [_place(regions, answer) for answer in rendering.answers]
        edges = [edge for place in places for edge in place.edges]
        tokens = self._tokens.tokens(text, people, edges)
        asked = [
            stretch
            for place, answer in zip(places, rendering.answers, strict=True)
            if answer.asked
            for stretch in self._asked(text, place, tokens)
        ]
        unasked = tuple(answer.turn for answer in rendering.answers if not answer.asked)
        return _join(tokens, asked, regions, image_tokens, unasked)

    def _stand_in(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            if token in self._tokens.added:
                return self._tokens.added[token]
        raise ValueError("a picture's tokens hold no added token of the tokenizer")

    def _asked(self, text: str, place: "_Place", tokens: Sequence[Token]) -> list[tuple[int, int]]:
        """The stretches of an answer with the token that ends it."""
        if place.after is None:
            return place.stretches
        *before, (start, end) = place.stretches
        for token, left, right in tokens[bisect.bisect_right(tokens, end, key=_stop) :]:
            inner, _ = core(text, left, right)
            if inner >= place.after.end:
                break
            if token in self._tokens.controls and inner >= end:
                return [*before, (start, right)]
        return place.stretches


_encoder = lru_cache(maxsize=4)(_Encoder)


def _stop(token: Token) -> int:
    return token[2]


@dataclass(frozen=True, slots=True)
class _Place:
    """An answer in the written conversation.

    `stretches` (start, end) are what the model produces of it, up to the control token in
    `after`, where that is not None; `edges` are where tokens have to end.
    """

    stretches: list[tuple[int, int]]
    after: _Region | None
    edges: list[int]


def _place(regions: Sequence[_Region], answer: Answer) -> _Place:
    own = regions[answer.first : answer.last + 1]
    stretches: list[tuple[int, int]] = []
    for number, region in enumerate(own):
        # What joins two texts is the model's; what the template writes around a picture is not.
        beside = [own[at].kind for at in (number - 1, number + 1) if 0 <= at < len(own)]
        if region.kind == TEXT or (region.kind == "literal" and beside == [TEXT, TEXT]):
            stretches.append((region.start, region.end))
    edges: list[int] = []
    if own[0].kind == TEXT:
        before = regions[answer.first - 1] if answer.first else None
        if before is not None and before.kind == "literal":
            stretches[0] = (before.start + answer.prompted, own[0].end)
        edges.append(stretches[0][0])
    if own[-1].kind != TEXT:
        return _Place(stretches, None, edges)
    after = regions[answer.last + 1] if answer.ended else None
    if after is None:
        edges.append(own[-1].end)
    return _Place(stretches, after, edges)


def _shape_of(
    turns: Sequence[ChatTurn],
) -> tuple[tuple[Message, ...], list[str], int]:
    """(the shape, the texts, how many pictures)"""
    shape: list[Message] = []
    texts: list[str] = []
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
        shape.append((turn.role, tuple(items)))
    return tuple(shape), texts, pictures


_TRIMMED: dict[Trim, str | None] = {"": "", "lines": "\n", "all": None}


def _write(
    pieces: Sequence[Piece], texts: Sequence[str], pictures: Sequence[str], bos: str | None
) -> tuple[str, list[_Region]]:
    """(the conversation, where each piece is in it); it begins with `bos`, if that is given."""
    words: list[str] = []
    regions: list[_Region] = []
    at = 0
    if bos and not (pieces and pieces[0].kind == "literal" and pieces[0].text.startswith(bos)):
        words.append(bos)
        at = len(bos)
    for piece in pieces:
        if piece.kind == "literal":
            word = piece.text
        elif piece.kind == "picture":
            word = pictures[piece.index]
        else:
            # A lone surrogate is no text: no tokenizer takes it.
            word = texts[piece.index].encode("utf-8", "replace").decode("utf-8")
            # None takes all white space, "" nothing.
            word = word.lstrip(_TRIMMED[piece.left])
            word = word.rstrip(_TRIMMED[piece.right])
        regions.append(_Region(at, at + len(word), piece.kind, piece.index))
        words.append(word)
        at += len(word)
    return "".join(words), regions


def _join(
    tokens: Sequence[Token],
    asked: Sequence[tuple[int, int]],
    regions: Sequence[_Region],
    image_tokens: Sequence[Sequence[int] | str],
    unasked: tuple[int, ...],
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
        mask.append(answer < len(asked) and asked[answer][0] <= start)
    return Encoded(ids, mask, spans, unasked)
