"""Turns one sample of a file into examples. The formats:

    LLaVA            image (one or several), conversations of {from, value}, `<image>` marks
    ShareGPT         like LLaVA, with images
    LLaMA-Factory    images, messages of {role, content}, `<image>` marks
    Alpaca           instruction, input, output, system, history (`mmchat.data.rows`)
    OpenAI chat      messages whose content is parts: text, image_url (data URL, file)
    TRL              images, messages whose {"type": "image"} parts take the next image
    Qwen-VL          conversations whose texts hold `<img>a.png</img>`
    MiniCPM-V        image as {"<image_00>": "a.png"}, conversations with those marks
    The Cauldron     images, texts of {user, assistant}
    mmchat           images, messages, and the reference in answer (`questions.jsonl`)
    rows             a picture column, and question + answer, text or caption, or label

Every value is untrusted: nothing is assumed about its type.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmchat.data.fields import (
    CHAT_KEYS,
    KIND_KEYS,
    LABEL_KEYS,
    PICTURE_KEYS,
    REFERENCE_DATA_KEYS,
    REFERENCE_PATH_KEYS,
    UNREAD_MEDIA_KEYS,
    Fields,
    normalized,
    numbered_pictures,
    picture_id,
)
from mmchat.data.pictures import PictureResolver, SourceFactory
from mmchat.data.placeholders import place_pictures
from mmchat.data.rows import row_chats, system_messages
from mmchat.data.turns import example_of, role_of
from mmchat.data.types import Example, Picture, Problem, SampleError, printable, type_name
from mmchat.turns import Turn

_LONGEST_KIND = 80
_MARK_KEY = re.compile(r"<\|?(?:image|img|picture)[ _-]?\d{1,3}\|?>", re.IGNORECASE)

SplitName = Literal["", "train", "validation", "test"]
"""Which split it is; "" if the data has no splits."""

SampleResult = list[Example] | Problem
"""The examples of a sample, or why it is left out."""


@dataclass(frozen=True, slots=True)
class Record:
    """A sample as it is in its file."""

    place: str
    value: object
    base: Path
    """The folder that relative names start from."""
    source: SourceFactory | None = None
    """Makes the callable that reads a picture inside the sample again; None keeps its bytes."""
    label_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The class names of integer labels, by normalized column name."""


@dataclass(frozen=True, slots=True)
class DataSource:
    """Data in one format that has not been read yet."""

    split: SplitName
    format: str
    results: Iterator[SampleResult]
    remarks: Sequence[str] = ()
    """What looks like a mistake but may be intended, one sentence each."""


def convert_records(
    records: Iterable[Record | Problem], convert: Callable[[Record], list[Example]]
) -> Iterator[SampleResult]:
    """Converts each record; a SampleError becomes a problem."""
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        try:
            yield convert(record)
        except SampleError as error:
            yield Problem(record.place, str(error), error.about)


def examples_of(record: Record, pictures: PictureResolver) -> list[Example]:
    """Returns the examples of a sample, usually one. Raises SampleError."""
    if not isinstance(record.value, dict):
        raise SampleError(f"this is {type_name(record.value)}, not a sample")
    fields = normalized(record.value)
    if any(fields.get(key) for key in UNREAD_MEDIA_KEYS):
        raise SampleError("it has video or audio, and only pictures are supported")

    def resolve(reference: object) -> Picture:
        return _picture(reference, record, pictures)

    images = [resolve(one) for one in _references(fields)]
    text_only = not images and any(fields.get(key) == [] for key in PICTURE_KEYS)
    chat = _chat(fields)
    if chat is not None:
        messages = place_pictures(chat, images, resolve, text_only=text_only)
        kept, only_last = _weighted(chat, messages)
        examples = [example_of(kept, _kind(fields), record.place, only_last=only_last)]
    else:
        chats, label = row_chats(fields, images, record.label_names)
        kind = label or _kind(fields)
        examples = [
            example_of(
                place_pictures(one, images, resolve, text_only=text_only), kind, record.place
            )
            for one in chats
        ]
    if not any(example.pictures for example in examples) and (found := picture_id(fields)):
        key, value = found
        raise SampleError(
            f"its picture is given only by {key} {printable(value)}, which is not a file: "
            "put the file name under image",
            "missing",
        )
    return examples


def _references(fields: Fields) -> list[object]:
    """The references to the sample's pictures, in order, from the first key that has any."""
    for key in PICTURE_KEYS:
        value = fields.get(key)
        if isinstance(value, dict) and value and all(map(_MARK_KEY.fullmatch, map(str, value))):
            # MiniCPM-V: each picture under the placeholder that stands for it in the text.
            return [
                value[mark] for mark in sorted(value, key=lambda mark: int(re.sub(r"\D", "", mark)))
            ]
        if isinstance(value, list):
            nested = [one for item in value for one in (item if isinstance(item, list) else [item])]
            if None in nested or "" in nested:
                raise SampleError(f"{key} holds an empty name", "missing")
            if nested:
                return nested
        elif value is not None and value != "":
            return [value]
    return numbered_pictures(fields)


def _picture(reference: object, record: Record, pictures: PictureResolver) -> Picture:
    """The picture for a name, its bytes, or an object that holds either."""
    name = ""
    for _ in range(3):  # {"image_url": {"url": …}}, Anthropic's {"source": {"data": …}}
        if not isinstance(reference, dict):
            break
        path = next((reference[key] for key in REFERENCE_PATH_KEYS if reference.get(key)), None)
        data = next((reference[key] for key in REFERENCE_DATA_KEYS if reference.get(key)), None)
        name = path if isinstance(path, str) else name
        reference = (data or path) if (data or path) is not None else reference.get("source")
    if isinstance(reference, bytes):
        return pictures.from_bytes(reference, name, record.source)
    if isinstance(reference, str):
        return pictures.resolve(reference, record.base, record.source)
    raise SampleError(f"a picture is {type_name(reference)}, not a file name", "missing")


def _chat(fields: Fields) -> list[Fields] | None:
    """The messages, unchecked, each with `role` and `content`; None if there are none."""
    written: object = None
    for key in CHAT_KEYS:
        if fields.get(key) is not None:
            written = fields[key]
            break
    else:
        prompt, completion = fields.get("prompt"), fields.get("completion")
        if not (isinstance(prompt, list) and isinstance(completion, list)):
            return None
        written = [*prompt, *completion]
    if isinstance(written, str):
        written = _parsed(written)
    if not isinstance(written, list) or not all(isinstance(one, dict) for one in written):
        raise SampleError("its conversation is not a list of messages")
    found: list[Fields] = system_messages(fields)
    for one in written:
        if "user" in one and "assistant" in one:
            found.append({"role": "user", "content": one["user"]})
            found.append({"role": "assistant", "content": one["assistant"]})
            continue
        if one.get("tool_calls") or one.get("function_call"):
            raise SampleError("an answer calls a tool, and tool calls are not supported")
        role = one["role"] if one.get("role") is not None else one.get("from")
        content = next(
            (one[k] for k in ("content", "value", "text") if one.get(k) is not None), None
        )
        found.append({"role": role, "content": content, "weight": one.get("weight")})
    answer = fields.get("answer")
    if isinstance(answer, str) and found and role_of(found[-1]["role"]) == "user":
        found.append({"role": "assistant", "content": answer})
    return found


def _parsed(text: str) -> object:
    """The JSON list in a cell of a table; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _weighted(
    chat: Sequence[Fields], messages: Sequence[Turn[Picture]]
) -> tuple[Sequence[Turn[Picture]], bool]:
    """Applies OpenAI's `weight`: the messages to keep, and whether only the last answer is trained."""
    counts = [
        (at, one.get("weight") != 0)
        for at, one in enumerate(chat)
        if messages[at].role == "assistant"
    ]
    if all(counted for _, counted in counts):
        return messages, False
    learned = [at for at, counted in counts if counted]
    if not learned:
        raise SampleError("all of its answers have weight 0, so there is nothing to learn")
    if len(learned) > 1:
        raise SampleError(
            "several of its answers count and others have weight 0: write one sample for each that counts"
        )
    return messages[: learned[0] + 1], True


def _kind(fields: Fields) -> str:
    for key in (*KIND_KEYS, *LABEL_KEYS):
        value = fields.get(key)
        if isinstance(value, str) and value.strip() and len(value) <= _LONGEST_KIND:
            return re.sub(r"\s+", " ", value.strip())
    return ""
