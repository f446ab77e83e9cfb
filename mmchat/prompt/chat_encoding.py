"""A conversation as tokens, with a mask of what the model has to produce.

Training and answering use the same encoding: the tokenizer's own chat template, people's words as plain
text, and pictures as their placeholder tokens at the place where the person put them.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mmchat.errors import ModelError
from mmchat.prompt.chat_template import (
    PICTURE,
    TEXT,
    AnswerSpan,
    ChatOutline,
    ChatTemplate,
    MessageOutline,
    Segment,
    Slot,
    Trim,
)
from mmchat.prompt.text_tokenizer import TextTokenizer, Token, strip_span, tokenizer_name
from mmchat.turns import Turn

Placeholders = Sequence[int] | str
"""What stands for a picture: its placeholder tokens, or the text that a Hugging Face processor writes."""


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A conversation as tokens.

    `answer_mask` is True for what the model has to produce: each answer and the token that ends it. The
    tokens before the first answer are exactly those of the conversation up to there with a generation
    prompt. `images` are the spans (start, length) of the pictures' placeholder tokens, in order.

    `unlearnable_turns` are the numbers of the turns whose answers the mask leaves out, because a model that
    is asked at that place has to produce something else. For example, Qwen3 writes a last answer after a
    thought and earlier answers without one, and templates without an end token end only the last answer.
    Such an answer can be learned from `turns[: number + 1]`.
    """

    input_ids: list[int]
    answer_mask: list[bool]
    images: list[tuple[int, int]]
    unlearnable_turns: tuple[int, ...] = ()


def encode_chat(
    tokenizer: Any,
    turns: Sequence[Turn[Any]],
    *,
    placeholders: Sequence[Placeholders] = (),
    add_generation_prompt: bool = False,
    image_token: str | None = None,
) -> EncodedChat:
    """Encodes `turns` with the tokenizer's chat template.

    People's words (of every role) never form a special or added token. Otherwise they are tokenized as
    transformers tokenizes the rendered conversation, with one exception: no token extends over the beginning
    of an answer (as a newline of the template and one of the answer might form), because the model is asked
    to begin there.

    If the template does not end a last answer, it is ended by what would follow it, up to the next control
    token (GLM), or by the tokenizer's EOS. If the generation prompt opens a thought that the template does
    not write (DeepSeek R1, QwQ), a closed thought stands before the last answer.

    `placeholders` has, for each picture in order, its placeholder tokens, or the text that a Hugging Face
    processor writes for it (special tokens in it count). The tokens must include one added token of the
    tokenizer. `image_token` is what the template itself writes for a picture; by default the first added
    token of the first picture.

    Raises ModelError if there is no chat template, or if it fails for this conversation.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{tokenizer_name(tokenizer)} has no chat template, so mmchat does not know how to talk to "
            "it: choose a chat or instruct model, or put a chat_template.jinja into its folder."
        )
    encoder = _encoder(tokenizer, tokenizer.get_chat_template())
    return encoder.encode(turns, placeholders, image_token, add_generation_prompt)


def answer_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after an answer, if it writes one.

    Raises ModelError if there is no usable template.
    """
    turns: list[Turn[Any]] = [Turn("user", ("a",)), Turn("assistant", ("a",))]
    encoded = encode_chat(tokenizer, turns)
    last = max((at for at, answer in enumerate(encoded.answer_mask) if answer), default=None)
    if last is None or encoded.input_ids[last] not in tokenizer.added_tokens_decoder:
        return None
    return encoded.input_ids[last]


@dataclass(frozen=True, slots=True)
class _TextSpan:
    """A segment in the text of the conversation: the characters `start` to `end`."""

    start: int
    end: int
    kind: str
    index: int = -1


class _Encoder:
    """Writes out a rendered conversation and tokenizes it."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokens = TextTokenizer(tokenizer)
        added = self._tokens.added
        controls = [added[token] for token in sorted(self._tokens.controls) if added.get(token)]
        self._template = ChatTemplate(tokenizer, template, tokenizer_name(tokenizer), controls)
        bos: str | None = tokenizer.bos_token
        # Flags do not tell reliably which tokenizers put BOS first by themselves, so this tries it.
        adds_bos = bos is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
        self._bos = bos if adds_bos else None

    def encode(
        self,
        turns: Sequence[Turn[Any]],
        placeholders: Sequence[Placeholders],
        image_token: str | None,
        add_generation_prompt: bool,
    ) -> EncodedChat:
        outline, texts, pictures = _outline(turns)
        if pictures != len(placeholders):
            raise ValueError(f"{pictures} pictures, but placeholders of {len(placeholders)}")
        picture_texts = [
            one if isinstance(one, str) else self._added_token_of(one) for one in placeholders
        ]
        if image_token is None and placeholders and not isinstance(placeholders[0], str):
            image_token = picture_texts[0]
        rendered = self._template.render(outline, image_token, add_generation_prompt)
        text, spans = _write(rendered.segments, texts, picture_texts, self._bos)
        people = [(span.start, span.end) for span in spans if span.kind == TEXT]
        places = [_answer_place(spans, answer) for answer in rendered.answers]
        edges = [edge for place in places for edge in place.edges]
        tokens = self._tokens.tokens(text, people, edges)
        learned = [
            stretch
            for place, answer in zip(places, rendered.answers, strict=True)
            if answer.learnable
            for stretch in self._with_end(text, place, tokens)
        ]
        unlearnable = tuple(answer.turn for answer in rendered.answers if not answer.learnable)
        return _join(tokens, learned, spans, placeholders, unlearnable)

    def _added_token_of(self, tokens: Sequence[int]) -> str:
        for token in tokens:
            if token in self._tokens.added:
                return self._tokens.added[token]
        raise ValueError("a picture's placeholders contain no added token of the tokenizer")

    def _with_end(
        self, text: str, place: "_AnswerPlace", tokens: Sequence[Token]
    ) -> list[tuple[int, int]]:
        """The stretches of an answer, with the token that ends it."""
        if place.after is None:
            return place.stretches
        *before, (start, end) = place.stretches
        for token, left, right in tokens[
            bisect.bisect_right(tokens, end, key=lambda token: token[2]) :
        ]:
            inner, _ = strip_span(text, left, right)
            if inner >= place.after.end:
                break
            if token in self._tokens.controls and inner >= end:
                return [*before, (start, right)]
        return place.stretches


_encoder = lru_cache(maxsize=4)(_Encoder)


@dataclass(frozen=True, slots=True)
class _AnswerPlace:
    """An answer in the text of the conversation.

    `stretches` (start, end) are what the model produces of it. If `after` is not None, it also produces
    that segment up to its first control token. No token extends over one of `edges`.
    """

    stretches: list[tuple[int, int]]
    after: _TextSpan | None
    edges: list[int]


def _answer_place(spans: Sequence[_TextSpan], answer: AnswerSpan) -> _AnswerPlace:
    own = spans[answer.first : answer.last + 1]
    stretches: list[tuple[int, int]] = []
    for number, span in enumerate(own):
        # The model produces what joins two texts, but not what the template writes around a picture.
        beside = [own[at].kind for at in (number - 1, number + 1) if 0 <= at < len(own)]
        if span.kind == TEXT or (span.kind == "template" and beside == [TEXT, TEXT]):
            stretches.append((span.start, span.end))
    edges: list[int] = []
    if own[0].kind == TEXT:
        before = spans[answer.first - 1] if answer.first else None
        if before is not None and before.kind == "template":
            stretches[0] = (before.start + answer.prompt_chars, own[0].end)
        edges.append(stretches[0][0])
    if own[-1].kind != TEXT:
        return _AnswerPlace(stretches, None, edges)
    after = spans[answer.last + 1] if answer.has_end else None
    if after is None:
        edges.append(own[-1].end)
    return _AnswerPlace(stretches, after, edges)


def _outline(turns: Sequence[Turn[Any]]) -> tuple[ChatOutline, list[str], int]:
    """(the outline, the texts, the number of pictures)"""
    outline: list[MessageOutline] = []
    texts: list[str] = []
    pictures = 0
    for turn in turns:
        slots: list[Slot] = []
        for part in turn.parts:
            if not isinstance(part, str):
                slots.append((PICTURE, pictures))
                pictures += 1
            elif slots and slots[-1][0] == TEXT:
                texts[-1] += part
            elif part:
                slots.append((TEXT, len(texts)))
                texts.append(part)
        if not slots:
            slots.append((TEXT, len(texts)))
            texts.append("")
        outline.append((turn.role, tuple(slots)))
    return tuple(outline), texts, pictures


_TRIMMED: dict[Trim, str | None] = {"": "", "newlines": "\n", "all": None}
"""The argument of str.strip: None removes all white space, "" nothing."""


def _write(
    segments: Sequence[Segment], texts: Sequence[str], pictures: Sequence[str], bos: str | None
) -> tuple[str, list[_TextSpan]]:
    """(the text of the conversation, where each segment is in it); the text begins with `bos` if given."""
    written: list[str] = []
    spans: list[_TextSpan] = []
    at = 0
    first = segments[0] if segments else None
    if bos and not (first and first.kind == "template" and first.text.startswith(bos)):
        written.append(bos)
        at = len(bos)
    for segment in segments:
        if segment.kind == "template":
            text = segment.text
        elif segment.kind == "picture":
            text = pictures[segment.index]
        else:
            # No tokenizer accepts a lone surrogate.
            text = texts[segment.index].encode("utf-8", "replace").decode("utf-8")
            text = text.lstrip(_TRIMMED[segment.left]).rstrip(_TRIMMED[segment.right])
        spans.append(_TextSpan(at, at + len(text), segment.kind, segment.index))
        written.append(text)
        at += len(text)
    return "".join(written), spans


def _join(
    tokens: Sequence[Token],
    learned: Sequence[tuple[int, int]],
    spans: Sequence[_TextSpan],
    placeholders: Sequence[Placeholders],
    unlearnable: tuple[int, ...],
) -> EncodedChat:
    """The tokens with each picture's placeholders, and a mask that is True inside `learned`."""
    pictures = [span for span in spans if span.kind == PICTURE]
    ids: list[int] = []
    mask: list[bool] = []
    images: list[tuple[int, int]] = []
    picture = answer = 0
    for token, start, end in tokens:
        last = max(end, start + 1)
        while picture < len(pictures) and pictures[picture].end <= start:
            picture += 1
        while answer < len(learned) and learned[answer][1] <= start:
            answer += 1
        if picture < len(pictures) and pictures[picture].start < last:
            own = placeholders[picture]
            first = len(images) == picture
            if isinstance(own, str):
                ids.append(token)
                mask.append(False)
                begin = len(ids) - 1 if first else images[picture][0]
                images[picture:] = [(begin, len(ids) - begin)]
            elif first:
                images.append((len(ids), len(own)))
                ids += own
                mask += [False] * len(own)
            continue
        ids.append(token)
        mask.append(answer < len(learned) and learned[answer][0] <= start)
    return EncodedChat(ids, mask, images, unlearnable)
