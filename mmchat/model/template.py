"""A tokenizer's chat template, rendered with marks in the place of people's words.

Templates are foreign programs, each with habits of its own: some take a
message's content as a string, some as a list of parts, some print all pictures
before all text, some refuse a system role. Here a conversation is rendered
with a private-use mark for each text and each picture, so that the result
shows which characters the template wrote (they may form special tokens) and
which a person did (they never may). Only the shape of a conversation reaches
the template, so one rendering serves every conversation of that shape.

It also shows what a model is asked to produce: what stands behind the generation
prompt that the engine would end with at that place, up to the token that ends the
answer.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from mmchat.errors import ModelError

TEXT, PICTURE = "text", "picture"
Item = tuple[str, int] | str
"""(TEXT | PICTURE, its number in the conversation), or words of ours between two texts."""
Message = tuple[str, tuple[Item, ...]]
"""(role, items)"""
Shape = tuple[Message, ...]

# The padding is white space that no template writes by itself: where it is gone
# the template trims, and the text is to be trimmed as well. Some trim newlines only,
# so outside of the blank stand more newlines than any template writes in a row.
_LINES, _BLANK = "\n" * 7, "\u2003"
_OPEN, _CLOSE = {TEXT: "\ue000", PICTURE: "\ue002"}, "\ue001"
_MARK = re.compile(
    f"(?:({_LINES})?({_BLANK}))?([\ue000\ue002])(\\d+){_CLOSE}(?:({_BLANK})({_LINES})?)?"
)
_GLUE = "\n\n"
# What some generation prompts end with and the template itself does not write: a thought, opened.
_OPENED = re.compile(r"\s*<(\w+)>(\s*)")
_ENDS_OPENED = re.compile(_OPENED.pattern + "$")

_Native = Literal["all", "leading", "none"]
"""Which messages' pictures the template writes: of those that begin with all of theirs, "leading"."""
# (content of a user's message, content of the others', pictures written by the template)
_Form = tuple[Literal["string", "parts"], Literal["string", "parts"], _Native]
# Some templates write a message's pictures before its text. Messages that have them elsewhere get
# them as text, and only these: what a message is must not depend on those after it.
_WITH_PICTURES: tuple[_Form, ...] = (
    ("parts", "parts", "all"),
    ("parts", "string", "all"),
    ("parts", "parts", "leading"),
    ("parts", "string", "leading"),
    ("parts", "parts", "none"),
    ("parts", "string", "none"),
    ("string", "string", "none"),
)
_WITHOUT: tuple[_Form, ...] = (
    ("string", "string", "none"),
    ("parts", "parts", "none"),
    ("parts", "string", "none"),
)


Trim = Literal["", "lines", "all"]
"""What a template takes from the side of a text: nothing, newlines, all white space."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation.

    `kind` is "literal" (the template's own words in `text`), "text" or
    "picture" (number `index` of the conversation); `left` and `right` say what
    the template trims from the sides of this text.
    """

    kind: Literal["literal", "text", "picture"]
    text: str = ""
    index: int = -1
    left: Trim = ""
    right: Trim = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An assistant's turn among the pieces of a rendering.

    `turn` is its number in the shape (turns that the rendering joins are one
    answer, with the number of the last), `first` and `last` are its first and last
    piece. Of the piece before it, the first `prompted` characters are the engine's
    prompt and the others the model's. `ended` says that a control token is in the
    piece after it; `asked` that the model, when asked here, has to produce it as it is
    written: some templates write an answer otherwise once the conversation has gone on.
    """

    turn: int
    first: int
    last: int
    prompted: int
    ended: bool
    asked: bool


@dataclass(frozen=True, slots=True)
class Rendering:
    """The pieces in order, and where the answers are."""

    pieces: tuple[Piece, ...]
    answers: tuple[Answer, ...]


class ChatTemplate:
    """The chat template of one tokenizer; renderings are kept by shape.

    `controls` are the texts of the tokenizer's control tokens.
    """

    def __init__(self, tokenizer: Any, template: str, name: str, controls: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._name = name
        self._controls = tuple(controls)
        self.render = lru_cache(maxsize=512)(self._render)
        self._pieces = lru_cache(maxsize=1024)(self._pieces_of)

    def _render(self, shape: Shape, mark: str | None, add_generation_prompt: bool) -> Rendering:
        """Renders `shape`; `mark` is what the template writes for a picture.

        A last answer that nothing ends is ended: by what stands after it up to the next control
        token once the user has spoken again, else by the tokenizer's EOS. A thought that only the
        generation prompt opens is closed at once before a last answer: the model is to
        answer from there.

        Raises ModelError where the template cannot take the conversation in
        any form.
        """
        pieces = list(self._pieces(shape, mark, add_generation_prompt))
        answers = self._answers(shape, pieces, mark)
        if not answers:
            return Rendering(tuple(pieces), ())
        last = answers[-1]
        if last.turn == len(shape) - 1 and not add_generation_prompt:
            prompt = self._opened(shape, last, pieces, mark)
            if prompt:
                pieces[last.first - 1] = Piece("literal", prompt + _closing(prompt))
                answers[-1] = last = replace(last, prompted=len(prompt))
            if not last.ended:
                end = self._end(shape, mark)
                # Nothing else follows a last answer than the template's own words.
                pieces[last.last + 1 :] = [Piece("literal", end)] if end else []
                answers[-1] = replace(last, ended=bool(end))
        earlier = [answer for answer in answers if answer.turn < len(shape) - 1]
        if earlier:
            alike = self._alike(shape, earlier[0], pieces, mark)
            answers[: len(earlier)] = [
                replace(answer, asked=alike and answer.ended) for answer in earlier
            ]
        return Rendering(tuple(pieces), tuple(answers))

    def _answers(self, shape: Shape, pieces: Sequence[Piece], mark: str | None) -> list[Answer]:
        """The assistant's turns, `asked` all of them."""
        places: dict[tuple[str, int], int] = {
            (p.kind, p.index): at for at, p in enumerate(pieces) if p.kind != "literal"
        }
        answers: list[Answer] = []
        prompt = ""
        for turn, (role, items) in enumerate(shape):
            if role != "assistant":
                continue
            own = [places[item] for item in items if not isinstance(item, str)]
            before = _literal(pieces, own[0] - 1)
            if answers and answers[-1].last == own[0] - 2 and before == _GLUE:
                ended = self._ended(pieces, own[-1])
                answers[-1] = replace(answers[-1], turn=turn, last=own[-1], ended=ended)
                continue
            # Most prompts are alike, so most are not asked for.
            if not prompt or not before.startswith(prompt):
                prompt = self._prompt(shape[:turn], mark)
            prompted = len(prompt) if prompt and before.startswith(prompt) else len(before)
            ended = self._ended(pieces, own[-1])
            answers.append(Answer(turn, own[0], own[-1], prompted, ended, asked=True))
        return answers

    def _prompt(self, shape: Shape, mark: str | None) -> str:
        """What the template writes after `shape` where it asks for an answer."""
        try:
            pieces = self._pieces(shape, mark, True) if shape else ()
        except ModelError:
            # Some templates want a whole exchange: the answer then begins at its text.
            return ""
        return pieces[-1].text if pieces and pieces[-1].kind == "literal" else ""

    def _opened(
        self, shape: Shape, answer: Answer, pieces: Sequence[Piece], mark: str | None
    ) -> str:
        """The generation prompt before `answer`, where it opens a thought that is not written."""
        before = _literal(pieces, answer.first - 1)
        prompt = self._prompt(shape[: answer.turn], mark)
        if not before or not prompt.startswith(before):
            return ""
        return prompt if _OPENED.fullmatch(prompt[len(before) :]) else ""

    def _alike(
        self, shape: Shape, answer: Answer, pieces: Sequence[Piece], mark: str | None
    ) -> bool:
        """Whether `answer` is written as it is when the conversation ends with it."""
        try:
            ending = self.render(shape[: answer.turn + 1], mark, False)
        except ModelError:
            return True
        alone = ending.answers[-1].first - 1
        return _literal(ending.pieces, alone) == _literal(pieces, answer.first - 1)

    def _ended(self, pieces: Sequence[Piece], last: int) -> bool:
        """Whether a control token follows the piece `last`."""
        following = _literal(pieces, last + 1)
        return any(control in following for control in self._controls)

    def _end(self, shape: Shape, mark: str | None) -> str:
        """What ends the last answer of `shape`, whose template ends it only when it goes on."""
        texts = [i[1] for _, items in shape for i in items if not isinstance(i, str)]
        user: Message = ("user", ((TEXT, max(texts, default=0) + 1),))
        try:
            pieces = self._pieces((*shape, user), mark, False)
        except ModelError:
            pieces = ()
        at = next((n for n, p in enumerate(pieces) if (p.kind, p.index) == shape[-1][1][-1]), -2)
        following = _literal(pieces, at + 1)
        found = [
            (following.index(control), -len(control), control)
            for control in self._controls
            if control in following
        ]
        if found:
            start, _, control = min(found)
            return following[: start + len(control)]
        return str(self._tokenizer.eos_token or "")

    def _pieces_of(
        self, shape: Shape, mark: str | None, add_generation_prompt: bool
    ) -> tuple[Piece, ...]:
        wanted = [item for _, items in shape for item in items if not isinstance(item, str)]
        pictures = any(kind == PICTURE for kind, _ in wanted)
        problem = "it leaves out a part of the conversation"
        for variant in _variants(shape):
            for form in _WITH_PICTURES if pictures else _WITHOUT:
                if form[2] != "none" and mark is None:
                    continue
                try:
                    rendered = self._apply(variant, form, add_generation_prompt)
                except Exception as error:
                    # A template is a foreign program that can fail in any way: the next form is
                    # tried, and the last failure is told.
                    problem = " ".join(str(error).split()) or type(error).__name__
                    continue
                pieces = _split(rendered, mark if form[2] != "none" else None)
                found = [(p.kind, p.index) for p in pieces if p.kind != "literal"]
                if found == wanted and "'type': 'text'" not in rendered:
                    return pieces
        raise ModelError(
            f"The chat template of {self._name} cannot be used for this conversation ({problem}): "
            "mend its chat_template, or choose another model."
        )

    def _apply(self, shape: Shape, form: _Form, add_generation_prompt: bool) -> str:
        user, others, native = form
        messages = [
            {
                "role": role,
                "content": _content(
                    items,
                    user if role == "user" else others,
                    native == "all" or (native == "leading" and _leading(items)),
                ),
            }
            for role, items in shape
        ]
        rendered: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return rendered


def _variants(shape: Shape) -> Sequence[Shape]:
    """`shape`, then what stricter templates take: no system role, no role twice in a row."""
    variants = [shape]
    roles = [role for role, _ in shape]
    if len(shape) > 1 and roles[0] == "system" and roles[1] == "user":
        variants.append((("user", (*shape[0][1], _GLUE, *shape[1][1])), *shape[2:]))
    if any(a == b for a, b in itertools.pairwise(roles)):
        for start in tuple(variants):
            joined: list[Message] = []
            for role, items in start:
                if joined and joined[-1][0] == role:
                    joined[-1] = (role, (*joined[-1][1], _GLUE, *items))
                else:
                    joined.append((role, items))
            variants.append(tuple(joined))
    return variants


def _leading(items: Sequence[Item]) -> bool:
    """Whether all pictures stand before all texts."""
    texts = [isinstance(item, str) or item[0] == TEXT for item in items]
    return texts == sorted(texts)


def _content(items: Sequence[Item], form: str, native: bool) -> str | list[dict[str, str]]:
    """A message's content; with `native` the template itself writes its pictures."""
    parts: list[dict[str, str]] = []
    for item in items:
        if native and not isinstance(item, str) and item[0] == PICTURE:
            parts.append({"type": "image"})
            continue
        words = item if isinstance(item, str) else _marked(*item)
        if parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += words
        else:
            parts.append({"type": "text", "text": words})
    return parts if form == "parts" else "".join(part["text"] for part in parts)


def _marked(kind: str, index: int) -> str:
    return f"{_LINES}{_BLANK}{_OPEN[kind]}{index}{_CLOSE}{_BLANK}{_LINES}"


def _literal(pieces: Sequence[Piece], at: int) -> str:
    """The template's own words at `at`."""
    there = 0 <= at < len(pieces) and pieces[at].kind == "literal"
    return pieces[at].text if there else ""


def _closing(prompt: str) -> str:
    """What ends the thought that `prompt` opens, as families with thoughts write an empty one."""
    found = _ENDS_OPENED.search(prompt)
    if found is None:
        return ""
    lines = "\n" if "\n" in found[2] else "\n\n"
    return f"{lines}</{found[1]}>\n\n"


def _split(rendered: str, mark: str | None) -> tuple[Piece, ...]:
    """The rendered conversation cut at its marks."""
    pieces: list[Piece] = []
    pictures = 0

    def literal(text: str) -> None:
        nonlocal pictures
        for number, stretch in enumerate(text.split(mark) if mark else [text]):
            if number:
                pieces.append(Piece("picture", index=pictures))
                pictures += 1
            if stretch:
                pieces.append(Piece("literal", stretch))

    at = 0
    for match in _MARK.finditer(rendered):
        literal(rendered[at : match.start()])
        lines_left, blank_left, opening, index, blank_right, lines_right = match.groups()
        kind: Literal["text", "picture"] = "text" if opening == _OPEN[TEXT] else "picture"
        left, right = _trim(blank_left, lines_left), _trim(blank_right, lines_right)
        pieces.append(Piece(kind, "", int(index), left, right))
        pictures += kind == "picture"
        at = match.end()
    literal(rendered[at:])
    return tuple(pieces)


def _trim(blank: str | None, lines: str | None) -> Trim:
    return "all" if blank is None else "lines" if lines is None else ""
