"""One sample of a file, in any of the forms that people keep them in, becomes examples.

    LLaVA            image (one or several), conversations of {from, value}, `<image>` marks
    ShareGPT         the same with images
    LLaMA-Factory    images, messages of {role, content}, `<image>` marks
    OpenAI chat      messages whose content is parts: text, image_url (data URL, file)
    TRL              images, messages whose parts {"type": "image"} take the next of them
    The Cauldron     images, texts of {user, assistant}
    mmchat           images, messages without the wanted answer, answer (`questions.jsonl`)
    rows             a picture's column, and question + answer, text or caption, or label

Every value is foreign: nothing is assumed of its type.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmchat.data.pictures import Keep, Pictures, Unusable, shown
from mmchat.data.turns import Message, Part, example_of, role_of
from mmchat.data.types import Example, Picture
from mmchat.data.wording import asked_caption, asked_class, readable

PICTURE_KEYS: Final = (
    *("images", "image", "file_name", "file_names", "filename", "picture", "pictures"),
    *("image_path", "image_paths", "img", "img_path"),
)
CHAT_KEYS: Final = ("messages", "conversations", "conversation", "texts")
QUESTION_KEYS: Final = ("question", "query", "prompt", "instruction")
ANSWER_KEYS: Final = ("answer", "answers", "response", "completion", "output")
CAPTION_KEYS: Final = ("text", "caption", "captions", "description")
LABEL_KEYS: Final = ("label", "class", "class_name", "category")
KIND_KEYS: Final = ("kind", "type", "question_type")
OTHER_KEYS: Final = ("system", "input", "videos", "video", "audios", "audio")
KNOWN_KEYS: Final = frozenset(
    PICTURE_KEYS + CHAT_KEYS + QUESTION_KEYS + ANSWER_KEYS + CAPTION_KEYS + LABEL_KEYS
) | {*KIND_KEYS, *OTHER_KEYS}

_MARK = "<image>"
_LONGEST_KIND = 80


@dataclass(frozen=True, slots=True)
class Record:
    """A sample as it stands in its file."""

    place: str
    value: object
    base: Path
    """The folder from which relative names are meant."""
    keep: Keep | None = None
    """How a picture that lies in the sample itself is read again; None: its bytes are held."""
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By column, what the numbers of a label mean."""


Fields = Mapping[str, Any]
"""A record's values by lower-case key."""
Refer = Callable[[object], Picture]
"""The picture that a part of a message names itself."""


def form_of(value: object) -> str | None:
    """What a sample looks like, in words; None where it is nothing that can be learned from."""
    if not isinstance(value, dict):
        return None
    fields = lowered(value)
    for key in CHAT_KEYS:
        chat = fields.get(key)
        if not isinstance(chat, list) or not chat or not isinstance(chat[0], dict):
            continue
        if key == "texts":
            return "The Cauldron's form" if "user" in chat[0] else None
        if "from" in chat[0]:
            return "ShareGPT" if "images" in fields else "LLaVA"
        if "role" not in chat[0]:
            return None
        if any(isinstance(one, dict) and isinstance(one.get("content"), list) for one in chat):
            return "OpenAI chat"
        if isinstance(fields.get("answer"), str) and "images" in fields:
            return "mmchat's evaluation questions"
        return "LLaMA-Factory" if "images" in fields else "OpenAI chat"
    return form_of_columns(fields)


def form_of_columns(columns: Mapping[str, Any] | Sequence[str]) -> str | None:
    """What a row of these columns is, in words; None where no answer can be made of it."""
    there = set(columns)
    if there & set(CHAT_KEYS):
        return "conversations"
    if there & set(QUESTION_KEYS) and there & set(ANSWER_KEYS + LABEL_KEYS):
        return "questions with answers"
    if not there & set(PICTURE_KEYS):
        return None
    if there & set(CAPTION_KEYS):
        return "pictures with captions"
    return "pictures with labels" if there & set(LABEL_KEYS) else None


def examples_of(record: Record, pictures: Pictures) -> list[Example]:
    """The examples of a sample, mostly one; raises Unusable where it is none."""
    if not isinstance(record.value, dict):
        raise Unusable(f"this is no sample, but {_kind_of_value(record.value)}")
    fields = lowered(record.value)
    for key in ("videos", "video", "audios", "audio"):
        if fields.get(key):
            raise Unusable("it needs a video or a sound, and only pictures are read")
    images = [_picture(one, record, pictures) for one in _references(fields)]
    chat = _chat(fields)
    if chat is None:
        return _rows(fields, images, record, pictures)
    messages = placed(chat, images, lambda one: _picture(one, record, pictures))
    kept, only_last = _weighed(chat, messages)
    return [example_of(kept, _kind(fields), record.place, only_last=only_last)]


def lowered(value: Mapping[Any, Any]) -> dict[str, Any]:
    """By lower-case key, the first of each."""
    found: dict[str, Any] = {}
    for key, one in value.items():
        found.setdefault(str(key).strip().lower(), one)
    return found


def _references(fields: Fields) -> list[object]:
    """What names the sample's pictures, in order, of the first key that has any."""
    for key in PICTURE_KEYS:
        value = fields.get(key)
        if isinstance(value, list):
            found = [one for one in value if one is not None and one != ""]
            if len(found) != len(value):
                raise Unusable(f"{key} holds an empty name", "missing")
            if found:
                return found
        elif value is not None and value != "":
            return [value]
    return []


def _picture(reference: object, record: Record, pictures: Pictures) -> Picture:
    name = ""
    if isinstance(reference, dict):
        path = next((reference[k] for k in ("path", "url", "file_name") if reference.get(k)), None)
        data = reference.get("bytes")
        if data is None:
            reference = path
        elif isinstance(data, bytes):
            reference, name = data, path if isinstance(path, str) else ""
    if isinstance(reference, bytes):
        return pictures.inside(reference, name, record.keep)
    if isinstance(reference, str):
        return pictures.named(reference, record.base, record.keep)
    raise Unusable(f"a picture is named by {_kind_of_value(reference)}", "missing")


def _chat(fields: Fields) -> list[Fields] | None:
    """The messages as they are written, each with `role` and `content`; None where there are none."""
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
    if not isinstance(written, list) or not all(isinstance(one, dict) for one in written):
        raise Unusable("its conversation is no list of messages")
    found: list[Fields] = []
    if isinstance(fields.get("system"), str):
        found.append({"role": "system", "content": fields["system"]})
    for one in written:
        if "user" in one and "assistant" in one:
            found.append({"role": "user", "content": one["user"]})
            found.append({"role": "assistant", "content": one["assistant"]})
            continue
        role = one["role"] if one.get("role") is not None else one.get("from")
        content = one["content"] if one.get("content") is not None else one.get("value")
        found.append({"role": role, "content": content, "weight": one.get("weight")})
    answer = fields.get("answer")
    if isinstance(answer, str) and found and role_of(found[-1]["role"]) == "user":
        found.append({"role": "assistant", "content": answer})
    return found


def placed(
    chat: Sequence[Fields], images: Sequence[Picture], refer: Refer, *, marks: bool = True
) -> list[Message]:
    """The messages with `images` where their places are, else before the first question.

    A place is a part of the type image that names none itself, or where no message is made
    of parts and there are `marks`, an `<image>` in the text. Raises Unusable.
    """
    waiting = _Waiting(images)
    in_text = marks and not any(isinstance(one["content"], list) for one in chat)
    messages = [
        Message(role_of(one["role"]), _parts(one["content"], waiting, refer, in_text=in_text))
        for one in chat
    ]
    if not waiting.taken and images:
        first = next((one for one in messages if one.role == "user"), None)
        if first is None:
            raise Unusable("it has pictures and no question")
        first.parts[:0] = images
    elif waiting.taken != len(images):
        raise Unusable(f"it names {len(images)} pictures and marks the places of {waiting.taken}")
    return messages


class _Waiting:
    """Pictures that are to be placed, in order."""

    def __init__(self, images: Sequence[Picture]) -> None:
        self._images = images
        self.taken = 0

    def next(self) -> Picture:
        self.taken += 1
        if self.taken > len(self._images):
            raise Unusable(
                f"it marks the places of more pictures than it names ({len(self._images)})",
                "missing",
            )
        return self._images[self.taken - 1]


def _parts(content: object, waiting: _Waiting, refer: Refer, *, in_text: bool) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        if not in_text:
            return [content]
        first, *rest = _texts_around_marks(content)
        found: list[Part] = [first]
        for text in rest:
            found += [waiting.next(), text]
        return found
    if not isinstance(content, list):
        raise Unusable(f"a message's content is {_kind_of_value(content)}, and no text")
    return [_part(part, waiting, refer) for part in content]


def _texts_around_marks(content: str) -> list[str]:
    """The texts before, between and after the marks.

    LLaVA writes marks at the beginning or end on lines of their own, and nobody ends
    a line before a picture in a chat: that line's end goes.
    """
    texts = content.split(_MARK)
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
    bare = texts[at].rstrip()
    if at < last and "\n" in texts[at][len(bare) :]:
        texts[at] = bare
    return texts


def _part(part: object, waiting: _Waiting, refer: Refer) -> Part:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise Unusable(f"a part of a message is {_kind_of_value(part)}, and no text or picture")
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image", "image_url", "input_image"):
        for key in ("image_url", "image", "url", "path"):
            if part.get(key) is not None:
                return refer(part[key])
        return waiting.next()
    raise Unusable(f"a part of a message is of the type {shown(kind)}, and no text or picture")


def _weighed(chat: Sequence[Fields], messages: Sequence[Message]) -> tuple[Sequence[Message], bool]:
    """OpenAI's `weight`: (the messages up to the last answer that counts, whether it alone does)"""
    counts = [
        (at, one.get("weight") != 0)
        for at, one in enumerate(chat)
        if messages[at].role == "assistant"
    ]
    if all(counted for _, counted in counts):
        return messages, False
    learned = [at for at, counted in counts if counted]
    if not learned:
        raise Unusable("each of its answers has the weight 0: there is nothing to learn")
    if len(learned) > 1:
        raise Unusable("some of its answers have the weight 0: make a sample of each of the others")
    return messages[: learned[0] + 1], True


def _rows(
    fields: Fields, images: Sequence[Picture], record: Record, pictures: Pictures
) -> list[Example]:
    """The examples of a row: a question with its answer, a caption, or a label."""
    question = _text(fields, QUESTION_KEYS)
    more = fields.get("input")
    if question and isinstance(more, str) and more.strip():
        question = f"{question}\n{more}"
    label = _label(fields, record)
    kind = label or _kind(fields)
    if question:
        answers = [_answer(fields) or label]
    elif not images:
        raise Unusable("it names no picture and asks no question")
    elif captions := _captions(fields):
        answers, question = captions, asked_caption(images[0].sha256)
    else:
        answers, question = [label], asked_class(images[0].sha256)
    found = []
    for answer in answers:
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages = placed(chat, images, lambda one: _picture(one, record, pictures))
        found.append(example_of(messages, kind, record.place))
    return found


def _text(fields: Fields, keys: Sequence[str]) -> str:
    """The first of `keys` that says something, as text; "" where none does."""
    for key in keys:
        text = _said(fields.get(key))
        if text:
            return text
    return ""


def _said(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "yes" if value else "no"
    # A number that is no number equals nothing, and is how tables write an empty cell.
    return str(value) if isinstance(value, int | float) and value == value else ""


def _answer(fields: Fields) -> str:
    """The answer; of several people's answers to one question, the most frequent."""
    for key in ANSWER_KEYS:
        value = fields.get(key)
        if isinstance(value, list):
            said = [_said(one.get("answer") if isinstance(one, dict) else one) for one in value]
            said = [one for one in said if one]
            if said:
                return Counter(said).most_common(1)[0][0]
        elif text := _said(value):
            return text
    return ""


def _captions(fields: Fields) -> list[str]:
    for key in CAPTION_KEYS:
        value = fields.get(key)
        said = [_said(one) for one in value] if isinstance(value, list) else [_said(value)]
        said = [one for one in said if one]
        if said:
            return said
    return []


def _label(fields: Fields, record: Record) -> str:
    for key in LABEL_KEYS:
        value = fields.get(key)
        names = record.names.get(key)
        if names and isinstance(value, int):
            if not 0 <= value < len(names):
                raise Unusable(f"its {key} is {value}, and there are {len(names)}")
            return readable(str(names[value]))
        if text := _said(value):
            return readable(text)
    return ""


def _kind(fields: Fields) -> str:
    for key in (*KIND_KEYS, *LABEL_KEYS):
        value = fields.get(key)
        if isinstance(value, str) and value.strip() and len(value) <= _LONGEST_KIND:
            return re.sub(r"\s+", " ", value.strip())
    return ""


def _kind_of_value(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bytes: "raw bytes"}
    names |= {bool: "a yes or no", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else "something else")
