"""Puts the pictures of a sample at the placeholders in its texts.

`<image>` marks the place of the next picture. Other tools write other placeholders
(`<|image_pad|>`, `<|image_1|>`, `<start_of_image>` …), and Qwen-VL writes the picture's path:
`<img>a.png</img>`. They are placeholders only in user messages, and only in samples that have
pictures; everywhere else they are text.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mmchat.data.fields import REFERENCE_DATA_KEYS, REFERENCE_PATH_KEYS, Fields
from mmchat.data.turns import Part, role_of
from mmchat.data.types import Picture, SampleError, printable, type_name
from mmchat.turns import Turn

Resolve = Callable[[object], Picture]
"""Finds the picture for a reference in a sample. Raises SampleError."""

_NUMBERED: Final = r"(?i:<\|?(?:image|img|picture)[ _-]?(?P<number>\d{1,3})\|?>)"
_PATH: Final = (
    r"(?i:<(?P<tag>img|image)>(?P<path>(?!\./<)(?=[^<>\n]*[./\\])[^<>\n]{1,4096})</(?P=tag)>)"
)
_ONE: Final = (
    r"(?:\(<image>\./</image>\)|<image>(?:\./)?</image>|<image>|<\|image_pad\|>|<\|image\|>"
    r"|<\|img\|>|<IMG_CONTEXT>|<im_patch>|<start_of_image>|<image_soft_token>|<image_placeholder>"
    r"|<image_token>|<\|media_pad\|>|<ImageHere>|<Image>|<IMAGE>|\[IMG\])"
)
_BEGIN: Final = (
    r"(?:<\|vision_start\|>|<\|begin_of_image\|>|<\|image_start\|>|<img>|<im_start>"
    r"|<fake_token_around_image>|<\|media_begin\|>image<\|media_content\|>)"
)
_END: Final = (
    r"(?:<\|vision_end\|>|<\|end_of_image\|>|<\|image_end\|>|</img>|<im_end>"
    r"|<fake_token_around_image>|<\|media_end\|>)"
)
# Placeholders between a begin and an end mark are one picture, however many there are.
_ANY: Final = re.compile(rf"{_PATH}|{_BEGIN}{_ONE}++{_END}|{_NUMBERED}|{_ONE}")
_PLAIN: Final = re.compile(rf"{_PATH}|<image>")
_PICTURE_PARTS: Final = ("image", "image_url", "input_image")
_REFERENCE_KEYS: Final = (*REFERENCE_PATH_KEYS, *REFERENCE_DATA_KEYS, "source")


def place_pictures(
    chat: Sequence[Fields],
    images: Sequence[Picture],
    resolve: Resolve,
    *,
    marks: bool = True,
    text_only: bool = False,
) -> list[Turn[Picture]]:
    """The messages with `images` at their placeholders, or before the first question.

    An image part without a reference is a placeholder, too. Texts are searched for
    placeholders only if `marks` is true, and not if the sample states that it has no picture
    (`text_only`). Raises SampleError.
    """
    placeholders = None
    if marks and not text_only and not any(map(_has_picture_part, chat)):
        placeholders = _placeholders(chat, len(images))
    places = _Places(images)
    messages: list[Turn[Picture]] = []
    for one in chat:
        role = role_of(one["role"])
        own = placeholders if role == "user" else None
        messages.append(Turn(role, tuple(_parts(one["content"], places, resolve, own))))
    if images and not places.taken:
        _put_first(messages, images)
    elif len(places.taken) != len(images):
        raise SampleError(f"it has {len(images)} pictures but placeholders for {len(places.taken)}")
    return messages


class _Places:
    """The pictures of a sample, and which of them have been placed."""

    def __init__(self, images: Sequence[Picture]) -> None:
        self._images = images
        self.taken: set[int] = set()

    def take(self, number: int | None = None) -> Picture:
        """Returns picture `number`, from 0, or the next one. Raises SampleError."""
        number = len(self.taken) if number is None else number
        if not 0 <= number < len(self._images):
            raise SampleError(
                f"it has placeholders for more pictures than it has ({len(self._images)})",
                "missing",
            )
        self.taken.add(number)
        return self._images[number]


@dataclass(frozen=True, slots=True)
class _Placeholders:
    """Which texts are placeholders in user messages."""

    pattern: re.Pattern[str]
    first: int
    """The number of the first picture in numbered placeholders: 0 or 1."""


def _placeholders(chat: Sequence[Fields], count: int) -> _Placeholders | None:
    """The placeholders of a sample with `count` pictures; None if all are text.

    Raises SampleError.
    """
    texts = [text for one in chat if role_of(one["role"]) == "user" for text in _texts(one)]
    matches = [match for text in texts for match in _ANY.finditer(text)]
    places = [match for match in matches if match["path"] is None]
    if not count and len(places) == len(matches):
        if found := _standalone_placeholder(texts):
            raise SampleError(
                "it has placeholders for more pictures than it has (0): add them, or write "
                f'"images": [] if {printable(found)} is meant as text',
                "missing",
            )
        return None
    if count and not places:
        others = [text for one in chat if role_of(one["role"]) != "user" for text in _texts(one)]
        if _standalone_placeholder(others):
            raise SampleError("a picture is in an answer, but only questions can have one")
    numbers = {match["number"] for match in places}
    distinct = len(numbers) if None not in numbers else len(places)
    plain = sum(match["path"] is None for text in texts for match in _PLAIN.finditer(text))
    # If `<image>` alone accounts for all pictures, the other placeholders are text.
    pattern = _PLAIN if plain == count != distinct else _ANY
    return _Placeholders(pattern, 0 if any(n and int(n) == 0 for n in numbers) else 1)


def _standalone_placeholder(texts: Iterable[str]) -> str:
    """A placeholder that begins or ends a text or fills a line, as tools write it; "" if none."""
    for text in map(str.strip, texts):
        matches = list(_ANY.finditer(text))
        if not matches:
            continue
        if matches[0].start() == 0 or matches[-1].end() == len(text):
            return (matches[0] if matches[0].start() == 0 else matches[-1])[0]
        for line in text.split("\n"):
            if _ANY.fullmatch(line.strip()):
                return line.strip()
    return ""


def _put_first(messages: list[Turn[Picture]], images: Sequence[Picture]) -> None:
    first = next((at for at, one in enumerate(messages) if one.role == "user"), None)
    if first is None:
        raise SampleError("it has pictures but no question")
    messages[first] = Turn("user", (*images, *messages[first].parts))


def _texts(message: Fields) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [text for part in parts if (text := _text_of(part)) is not None]


def _text_of(part: object) -> str | None:
    """The text of a part of a message; None if it is something else."""
    if isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text"):
        part = "" if part.get("text") is None else part["text"]
    return part if isinstance(part, str) else None


def _has_picture_part(message: Fields) -> bool:
    content = message["content"]
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in _PICTURE_PARTS for part in content
    )


def _parts(
    content: object, places: _Places, resolve: Resolve, placeholders: _Placeholders | None
) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, list):
        raise SampleError(f"a message's content is {type_name(content)}, not text")
    parts: list[Part] = []
    for part in content:
        text = _text_of(part)
        if text is None:
            parts.append(_picture(part, places, resolve))
        else:
            parts += _split(text, places, resolve, placeholders) if placeholders else [text]
    return parts


def _split(text: str, places: _Places, resolve: Resolve, placeholders: _Placeholders) -> list[Part]:
    """`text` with pictures at its placeholders."""
    matches = list(placeholders.pattern.finditer(text))
    ends = [0, *(match.end() for match in matches)]
    starts = [*(match.start() for match in matches), len(text)]
    texts = _without_line_ends([text[end:start] for end, start in zip(ends, starts, strict=True)])
    parts: list[Part] = [texts[0]]
    for match, after in zip(matches, texts[1:], strict=True):
        number = match["number"] if "number" in placeholders.pattern.groupindex else None
        if match["path"] is not None:
            parts.append(resolve(match["path"].strip()))
        elif number is not None:
            parts.append(places.take(int(number) - placeholders.first))
        else:
            parts.append(places.take())
        parts.append(after)
    return parts


def _without_line_ends(texts: list[str]) -> list[str]:
    """The texts around placeholders, without line ends that only separate a placeholder.

    LLaVA puts placeholders on lines of their own at the beginning or the end of a text, which
    people do not do in a chat.
    """
    last = len(texts) - 1
    at = 0
    while at < last and not texts[at].strip():
        texts[at] = ""
        at += 1
    if at:
        texts[at] = texts[at].lstrip()
    at = last
    while at > 0 and not texts[at].strip():
        texts[at] = ""
        at -= 1
    stripped = texts[at].rstrip()
    if at < last and "\n" in texts[at][len(stripped) :]:
        texts[at] = stripped
    return texts


def _picture(part: object, places: _Places, resolve: Resolve) -> Picture:
    if not isinstance(part, dict):
        raise SampleError(f"a part of a message is {type_name(part)}, not text or a picture")
    if part.get("type") not in _PICTURE_PARTS:
        raise SampleError(
            f"a part of a message has the type {printable(part.get('type'))}, not text or image"
        )
    named = any(part.get(key) is not None for key in _REFERENCE_KEYS)
    return resolve(part) if named else places.take()
