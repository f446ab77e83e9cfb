"""A tokenizer's chat template, rendered with marks in the place of people's words.

Templates are foreign programs, each with habits of its own: some take a
message's content as a string, some as a list of parts, some print all pictures
before all text, some refuse a system role. Here a conversation is rendered
with a private-use mark for each text and each picture, so that the result
shows which characters the template wrote (they may form special tokens) and
which a person did (they never may). Only the shape of a conversation reaches
the template, so one rendering serves every conversation of that shape.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
# the template trims, and the text is to be trimmed as well.
_PAD = "\u2003"
_OPEN, _CLOSE = {TEXT: "\ue000", PICTURE: "\ue002"}, "\ue001"
_MARK = re.compile(f"({_PAD}?)([\ue000\ue002])(\\d+){_CLOSE}({_PAD}?)")
_GLUE = "\n\n"

# (content of a user's message, content of the others', pictures written by the template)
_Form = tuple[Literal["string", "parts"], Literal["string", "parts"], bool]
_WITH_PICTURES: tuple[_Form, ...] = (
    ("parts", "parts", True),
    ("parts", "string", True),
    ("parts", "parts", False),
    ("parts", "string", False),
    ("string", "string", False),
)
_WITHOUT: tuple[_Form, ...] = (
    ("string", "string", False),
    ("parts", "parts", False),
    ("parts", "string", False),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation.

    `kind` is "literal" (the template's own words in `text`), "text" or
    "picture" (number `index` of the conversation); `strip_left` and
    `strip_right` say that the template trims this text.
    """

    kind: Literal["literal", "text", "picture"]
    text: str = ""
    index: int = -1
    strip_left: bool = False
    strip_right: bool = False


@dataclass(frozen=True, slots=True)
class Rendering:
    """The pieces in order, and what the template writes before an answer."""

    pieces: tuple[Piece, ...]
    answer_start: str


class ChatTemplate:
    """The chat template of one tokenizer; renderings are kept by shape."""

    def __init__(self, tokenizer: Any, template: str, name: str) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._name = name
        self.render = lru_cache(maxsize=512)(self._render)

    def _render(self, shape: Shape, mark: str | None, add_generation_prompt: bool) -> Rendering:
        """Renders `shape`; `mark` is what the template writes for a picture.

        Raises ModelError where the template cannot take the conversation in
        any form.
        """
        pieces = self._pieces(shape, mark, add_generation_prompt)
        answer_start = ""
        first_answer = next((i for i, (role, _) in enumerate(shape) if role == "assistant"), None)
        if first_answer:
            try:
                before = self._pieces(shape[:first_answer], mark, True)
                answer_start = before[-1].text if before[-1].kind == "literal" else ""
            except ModelError:
                # Some templates want a whole exchange: the answer then begins at its text.
                answer_start = ""
        return Rendering(pieces, answer_start)

    def _pieces(
        self, shape: Shape, mark: str | None, add_generation_prompt: bool
    ) -> tuple[Piece, ...]:
        wanted = [item for _, items in shape for item in items if not isinstance(item, str)]
        pictures = any(kind == PICTURE for kind, _ in wanted)
        problem = "it leaves out a part of the conversation"
        for variant in _variants(shape):
            for form in _WITH_PICTURES if pictures else _WITHOUT:
                if form[2] and mark is None:
                    continue
                try:
                    rendered = self._apply(variant, form, add_generation_prompt)
                except Exception as error:
                    # A template is a foreign program that can fail in any way: the next form is
                    # tried, and the last failure is told.
                    problem = " ".join(str(error).split()) or type(error).__name__
                    continue
                pieces = _split(rendered, mark if form[2] else None)
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
            {"role": role, "content": _content(items, user if role == "user" else others, native)}
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
    return f"{_PAD}{_OPEN[kind]}{index}{_CLOSE}{_PAD}"


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
        left, opening, index, right = match.groups()
        kind: Literal["text", "picture"] = "text" if opening == _OPEN[TEXT] else "picture"
        pieces.append(Piece(kind, "", int(index), not left, not right))
        at = match.end()
    literal(rendered[at:])
    return tuple(pieces)
