"""A tokenizer's chat template, rendered with placeholders instead of people's words.

Chat templates are programs that come with a model, and they differ. Some take the content of a message as
a string, some as a list of parts. Some write all pictures before all text. Some refuse a system role. Here
a conversation is rendered with a sentinel (private-use characters) for each text and each picture. The
result shows which characters the template wrote (they may form special tokens) and which a person wrote
(they never may). The template sees only the outline of a conversation, so one rendering serves all
conversations with the same outline.

The rendering also shows what the model has to produce: everything after the generation prompt, with which
the engine would ask for an answer at that place, up to the token that ends the answer.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from mmchat.errors import ModelError, describe_error

TEXT, PICTURE = "text", "picture"
Slot = tuple[str, int]
"""(TEXT or PICTURE, its number in the conversation)"""
MessageOutline = tuple[str, tuple[Slot | str, ...]]
"""(role, slots); a string is a separator of ours between two texts."""
ChatOutline = tuple[MessageOutline, ...]

# The padding of a sentinel is white space that no template writes itself. If it is missing in the result,
# the template trims, so the text has to be trimmed as well. Some templates trim newlines only: outside of
# the blank there are more newlines than any template writes in a row.
_NEWLINES, _BLANK = "\n" * 7, "\u2003"
_OPEN, _CLOSE = {TEXT: "\ue000", PICTURE: "\ue002"}, "\ue001"
_SENTINEL = re.compile(
    f"(?:({_NEWLINES})?({_BLANK}))?([\ue000\ue002])(\\d+){_CLOSE}(?:({_BLANK})({_NEWLINES})?)?"
)
_SEPARATOR = "\n\n"
# Some generation prompts end with the opening tag of a thought, which the template does not write elsewhere.
_OPENED_THOUGHT = re.compile(r"\s*<(\w+)>(\s*)")
_OPENED_THOUGHT_AT_END = re.compile(_OPENED_THOUGHT.pattern + "$")

_ContentType = Literal["string", "parts"]
_TemplatePictures = Literal["all", "leading", "none"]
"""Which messages' pictures the template writes; "leading": of messages with all pictures before all text."""
_ContentFormat = tuple[_ContentType, _ContentType, _TemplatePictures]
"""(content of the user's messages, content of the others', pictures that the template writes)"""
# Some templates write a message's pictures before its text. Messages with pictures elsewhere get them as
# text, but only those messages: what a message becomes must not depend on the messages after it.
_FORMATS_WITH_PICTURES: tuple[_ContentFormat, ...] = (
    ("parts", "parts", "all"),
    ("parts", "string", "all"),
    ("parts", "parts", "leading"),
    ("parts", "string", "leading"),
    ("parts", "parts", "none"),
    ("parts", "string", "none"),
    ("string", "string", "none"),
)
_FORMATS_WITHOUT_PICTURES: tuple[_ContentFormat, ...] = (
    ("string", "string", "none"),
    ("parts", "parts", "none"),
    ("parts", "string", "none"),
)

Trim = Literal["", "newlines", "all"]
"""What a template removes from one side of a text: nothing, newlines, or all white space."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered conversation.

    `kind` is "template" (characters that the template wrote, in `text`), "text" or "picture" (number
    `index` of the conversation). `left` and `right` say what the template trims from the sides of a text.
    """

    kind: Literal["template", "text", "picture"]
    text: str = ""
    index: int = -1
    left: Trim = ""
    right: Trim = ""


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """Where an answer of the assistant is among the segments of a rendering.

    `turn` is its number in the outline; turns that the rendering joins are one answer, with the number of
    the last. `first` and `last` are its first and last segment. Of the segment before the answer, the first
    `prompt_chars` characters belong to the engine's prompt and the others to the model. `has_end` says that
    the segment after the answer contains a control token.

    `learnable` says that a model that is asked at this place has to produce the answer as it is written
    here. That is not so if the template writes an answer differently once the conversation has gone on.
    """

    turn: int
    first: int
    last: int
    prompt_chars: int
    has_end: bool
    learnable: bool


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """The segments in order, and where the answers are."""

    segments: tuple[Segment, ...]
    answers: tuple[AnswerSpan, ...]


class ChatTemplate:
    """The chat template of one tokenizer; renderings are cached by outline.

    `controls` are the texts of the tokenizer's control tokens.
    """

    def __init__(self, tokenizer: Any, template: str, name: str, controls: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._name = name
        self._controls = tuple(controls)
        self.render = lru_cache(maxsize=512)(self._render)
        self._segments = lru_cache(maxsize=1024)(self._render_segments)

    def _render(
        self, outline: ChatOutline, image_token: str | None, add_generation_prompt: bool
    ) -> RenderedChat:
        """Renders `outline`; `image_token` is what the template writes for a picture.

        If the template does not end a last answer, it is ended here: by what the template writes after it,
        up to the next control token, once the user has spoken again; if there is none, by the tokenizer's
        EOS. If only the generation prompt opens a thought, the thought is closed at once before a last
        answer, and the model answers from there.

        Raises ModelError if the template does not accept the conversation in any format.
        """
        segments = list(self._segments(outline, image_token, add_generation_prompt))
        answers = self._answers(outline, segments, image_token)
        if not answers:
            return RenderedChat(tuple(segments), ())
        last = answers[-1]
        if last.turn == len(outline) - 1 and not add_generation_prompt:
            prompt = self._thought_prompt(outline, last, segments, image_token)
            if prompt:
                segments[last.first - 1] = Segment("template", prompt + _thought_end(prompt))
                answers[-1] = last = replace(last, prompt_chars=len(prompt))
            if not last.has_end:
                end = self._answer_end(outline, image_token)
                # After a last answer there is nothing but what the template wrote.
                segments[last.last + 1 :] = [Segment("template", end)] if end else []
                answers[-1] = replace(last, has_end=bool(end))
        earlier = [answer for answer in answers if answer.turn < len(outline) - 1]
        if earlier:
            same = self._same_as_last(outline, earlier[0], segments, image_token)
            answers[: len(earlier)] = [
                replace(answer, learnable=same and answer.has_end) for answer in earlier
            ]
        return RenderedChat(tuple(segments), tuple(answers))

    def _answers(
        self, outline: ChatOutline, segments: Sequence[Segment], image_token: str | None
    ) -> list[AnswerSpan]:
        """The assistant's turns, all of them `learnable`."""
        places: dict[Slot, int] = {
            (segment.kind, segment.index): at
            for at, segment in enumerate(segments)
            if segment.kind != "template"
        }
        answers: list[AnswerSpan] = []
        prompt = ""
        for turn, (role, slots) in enumerate(outline):
            if role != "assistant":
                continue
            own = [places[slot] for slot in slots if not isinstance(slot, str)]
            before = _template_text(segments, own[0] - 1)
            if answers and answers[-1].last == own[0] - 2 and before == _SEPARATOR:
                has_end = self._has_control_after(segments, own[-1])
                answers[-1] = replace(answers[-1], turn=turn, last=own[-1], has_end=has_end)
                continue
            # Most answers have the same prompt before them, which is then rendered only once.
            if not prompt or not before.startswith(prompt):
                prompt = self._generation_prompt(outline[:turn], image_token)
            prompt_chars = len(prompt) if prompt and before.startswith(prompt) else len(before)
            has_end = self._has_control_after(segments, own[-1])
            answers.append(AnswerSpan(turn, own[0], own[-1], prompt_chars, has_end, learnable=True))
        return answers

    def _generation_prompt(self, outline: ChatOutline, image_token: str | None) -> str:
        """What the template writes after `outline` to ask for an answer."""
        try:
            segments = self._segments(outline, image_token, True) if outline else ()
        except ModelError:
            # Some templates accept whole exchanges only: the answer then begins at its text.
            return ""
        return _template_text(segments, len(segments) - 1)

    def _thought_prompt(
        self,
        outline: ChatOutline,
        answer: AnswerSpan,
        segments: Sequence[Segment],
        image_token: str | None,
    ) -> str:
        """The generation prompt before `answer` if it opens a thought that the template leaves out."""
        before = _template_text(segments, answer.first - 1)
        prompt = self._generation_prompt(outline[: answer.turn], image_token)
        if not before or not prompt.startswith(before):
            return ""
        return prompt if _OPENED_THOUGHT.fullmatch(prompt[len(before) :]) else ""

    def _same_as_last(
        self,
        outline: ChatOutline,
        answer: AnswerSpan,
        segments: Sequence[Segment],
        image_token: str | None,
    ) -> bool:
        """Whether `answer` is written as it is when the conversation ends with it."""
        try:
            ending = self.render(outline[: answer.turn + 1], image_token, False)
        except ModelError:
            return True
        before = _template_text(ending.segments, ending.answers[-1].first - 1)
        return before == _template_text(segments, answer.first - 1)

    def _has_control_after(self, segments: Sequence[Segment], last: int) -> bool:
        """Whether a control token follows the segment `last`."""
        following = _template_text(segments, last + 1)
        return any(control in following for control in self._controls)

    def _answer_end(self, outline: ChatOutline, image_token: str | None) -> str:
        """What ends the last answer of `outline`, if the template ends it only when the chat goes on."""
        texts = [s[1] for _, slots in outline for s in slots if not isinstance(s, str)]
        user: MessageOutline = ("user", ((TEXT, max(texts, default=0) + 1),))
        try:
            segments = self._segments((*outline, user), image_token, False)
        except ModelError:
            segments = ()
        last_slot = outline[-1][1][-1]
        at = next((n for n, s in enumerate(segments) if (s.kind, s.index) == last_slot), -2)
        following = _template_text(segments, at + 1)
        ends = [
            (following.index(control), -len(control), control)
            for control in self._controls
            if control in following
        ]
        if ends:
            start, _, control = min(ends)
            return following[: start + len(control)]
        return str(self._tokenizer.eos_token or "")

    def _render_segments(
        self, outline: ChatOutline, image_token: str | None, add_generation_prompt: bool
    ) -> tuple[Segment, ...]:
        wanted = [slot for _, slots in outline for slot in slots if not isinstance(slot, str)]
        pictures = any(kind == PICTURE for kind, _ in wanted)
        problem = "it leaves out a part of the conversation"
        for variant in _variants(outline):
            for content in _FORMATS_WITH_PICTURES if pictures else _FORMATS_WITHOUT_PICTURES:
                if content[2] != "none" and image_token is None:
                    continue
                try:
                    rendered = self._apply(variant, content, add_generation_prompt)
                except Exception as error:
                    # A template can fail in any way: the next format is tried, and the last failure
                    # is reported.
                    problem = describe_error(error, limit=None)
                    continue
                segments = _split(rendered, image_token if content[2] != "none" else None)
                found = [(s.kind, s.index) for s in segments if s.kind != "template"]
                if found == wanted and "'type': 'text'" not in rendered:
                    return segments
        raise ModelError(
            f"The chat template of {self._name} cannot be used for this conversation ({problem}): "
            "correct its chat_template, or choose another model."
        )

    def _apply(
        self, outline: ChatOutline, content: _ContentFormat, add_generation_prompt: bool
    ) -> str:
        user, others, pictures = content
        messages = [
            {
                "role": role,
                "content": _content(
                    slots,
                    user if role == "user" else others,
                    pictures == "all" or (pictures == "leading" and _pictures_lead(slots)),
                ),
            }
            for role, slots in outline
        ]
        rendered: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return rendered


def _variants(outline: ChatOutline) -> Sequence[ChatOutline]:
    """`outline`, then what stricter templates accept: no system role, no role twice in a row."""
    variants = [outline]
    roles = [role for role, _ in outline]
    if len(outline) > 1 and roles[0] == "system" and roles[1] == "user":
        variants.append((("user", (*outline[0][1], _SEPARATOR, *outline[1][1])), *outline[2:]))
    if any(a == b for a, b in itertools.pairwise(roles)):
        for start in tuple(variants):
            joined: list[MessageOutline] = []
            for role, slots in start:
                if joined and joined[-1][0] == role:
                    joined[-1] = (role, (*joined[-1][1], _SEPARATOR, *slots))
                else:
                    joined.append((role, slots))
            variants.append(tuple(joined))
    return variants


def _pictures_lead(slots: Sequence[Slot | str]) -> bool:
    """Whether all pictures come before all texts."""
    texts = [isinstance(slot, str) or slot[0] == TEXT for slot in slots]
    return texts == sorted(texts)


def _content(
    slots: Sequence[Slot | str], content_type: _ContentType, template_pictures: bool
) -> str | list[dict[str, str]]:
    """A message's content; with `template_pictures` the template writes its pictures."""
    parts: list[dict[str, str]] = []
    for slot in slots:
        if template_pictures and not isinstance(slot, str) and slot[0] == PICTURE:
            parts.append({"type": "image"})
            continue
        text = slot if isinstance(slot, str) else _sentinel(*slot)
        if parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += text
        else:
            parts.append({"type": "text", "text": text})
    return parts if content_type == "parts" else "".join(part["text"] for part in parts)


def _sentinel(kind: str, index: int) -> str:
    return f"{_NEWLINES}{_BLANK}{_OPEN[kind]}{index}{_CLOSE}{_BLANK}{_NEWLINES}"


def _template_text(segments: Sequence[Segment], at: int) -> str:
    """What the template wrote at `at`; "" if that is a text, a picture, or outside of the conversation."""
    inside = 0 <= at < len(segments) and segments[at].kind == "template"
    return segments[at].text if inside else ""


def _thought_end(prompt: str) -> str:
    """What ends the thought that `prompt` opens, as reasoning models write an empty one."""
    opened = _OPENED_THOUGHT_AT_END.search(prompt)
    if opened is None:
        return ""
    newlines = "\n" if "\n" in opened[2] else "\n\n"
    return f"{newlines}</{opened[1]}>\n\n"


def _split(rendered: str, image_token: str | None) -> tuple[Segment, ...]:
    """The rendered conversation, cut at its sentinels and at each `image_token`."""
    segments: list[Segment] = []
    pictures = 0

    def add_template_text(text: str) -> None:
        nonlocal pictures
        for number, stretch in enumerate(text.split(image_token) if image_token else [text]):
            if number:
                segments.append(Segment("picture", index=pictures))
                pictures += 1
            if stretch:
                segments.append(Segment("template", stretch))

    at = 0
    for match in _SENTINEL.finditer(rendered):
        add_template_text(rendered[at : match.start()])
        newlines_left, blank_left, opening, index, blank_right, newlines_right = match.groups()
        kind: Literal["text", "picture"] = "text" if opening == _OPEN[TEXT] else "picture"
        left, right = _trim(blank_left, newlines_left), _trim(blank_right, newlines_right)
        segments.append(Segment(kind, "", int(index), left, right))
        pictures += kind == "picture"
        at = match.end()
    add_template_text(rendered[at:])
    return tuple(segments)


def _trim(blank: str | None, newlines: str | None) -> Trim:
    return "all" if blank is None else "newlines" if newlines is None else ""
