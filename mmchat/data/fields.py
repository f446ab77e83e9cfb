"""The field names of the supported formats, and detecting a format by them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

PICTURE_KEYS: Final = (
    *("images", "image", "file_name", "file_names", "filename", "filenames", "picture", "pictures"),
    *("image_path", "image_paths", "imagepath", "image_file", "image_files", "image_filename"),
    *("image_file_name", "image_name", "image_names", "img", "imgs", "img_path", "img_file"),
    *("img_name", "photo", "photos", "image_base64", "img_base64"),
    *("image_url", "image_urls", "img_url"),
)
REFERENCE_PATH_KEYS: Final = ("path", "url", "file_name", "filename", "image", "image_url", "uri")
"""Keys of an object for one picture, for its path or another such object."""
REFERENCE_DATA_KEYS: Final = ("bytes", "base64", "b64", "b64_json", "data", "image_base64")
"""Keys of an object for one picture, for its bytes."""
CHAT_KEYS: Final = ("messages", "conversations", "conversation", "texts")
QUESTION_KEYS: Final = ("question", "query", "prompt", "instruction")
CONTEXT_KEYS: Final = ("context", "passage", "hint")
CHOICE_KEYS: Final = ("choices", "options")
CHOICE_LETTERS: Final = "abcdefgh"
ANSWER_KEYS: Final = (
    *("answer", "answers", "response", "completion", "output", "multiple_choice_answer"),
    *("correct_answer", "ground_truth", "direct_answers"),
)
CAPTION_KEYS: Final = ("text", "caption", "captions", "description")
LABEL_KEYS: Final = ("label", "class", "class_name", "category")
KIND_KEYS: Final = ("kind", "type", "question_type")
SYSTEM_KEYS: Final = ("system", "system_prompt")
UNREAD_MEDIA_KEYS: Final = ("videos", "video", "audios", "audio")

KNOWN_KEYS: Final = frozenset(
    {*PICTURE_KEYS, *CHAT_KEYS, *QUESTION_KEYS, *CONTEXT_KEYS, *CHOICE_KEYS, *ANSWER_KEYS}
    | {*CAPTION_KEYS, *LABEL_KEYS, *KIND_KEYS, *SYSTEM_KEYS, *UNREAD_MEDIA_KEYS}
    | {"input", "history", *CHOICE_LETTERS}
)
_NUMBERED_PICTURE: Final = re.compile(r"(?:image|img|picture|photo)_?(\d{1,3})")
_PICTURE_ID: Final = re.compile(
    r"(?:image|img|picture|photo|coco|flickr)_?(?:ids?|idx|index|keys?|hash|sha256|uuid|number|no)"
)

Fields = Mapping[str, Any]
"""A sample's values by normalized key."""


def normalized_key(name: object) -> str:
    """Normalizes a key: `File Name` is `file_name`."""
    return re.sub(r"[\s./-]+", "_", str(name).strip().lower())


def normalized(value: Mapping[Any, Any]) -> dict[str, Any]:
    """`value` by normalized key; the first of equal keys wins."""
    fields: dict[str, Any] = {}
    for key, one in value.items():
        fields.setdefault(normalized_key(key), one)
    return fields


def is_known(name: object) -> bool:
    """Whether a column of this name is used."""
    key = normalized_key(name)
    return key in KNOWN_KEYS or _names_picture(key)


def numbered_pictures(fields: Fields) -> list[object]:
    """The non-empty values of `image_1`, `image_2` and so on, in order."""
    found = [
        (int(match[1]), value)
        for key, value in fields.items()
        if value not in (None, "") and (match := _NUMBERED_PICTURE.fullmatch(key))
    ]
    return [value for _, value in sorted(found, key=lambda one: one[0])]


def picture_id(fields: Fields) -> tuple[str, object] | None:
    """The (key, value) of a picture id or hash, which is not a file; None if there is none."""
    for key, value in fields.items():
        if value not in (None, "") and _PICTURE_ID.fullmatch(key):
            return key, value
    return None


def detect_sample_format(value: object) -> str | None:
    """The name of a sample's format; None if it is unknown."""
    if not isinstance(value, dict):
        return None
    fields = normalized(value)
    for key in CHAT_KEYS:
        chat = fields.get(key)
        if not isinstance(chat, list) or not chat or not isinstance(chat[0], dict):
            continue
        if key == "texts":
            return "The Cauldron" if "user" in chat[0] else None
        if "from" in chat[0]:
            return "ShareGPT" if "images" in fields else "LLaVA"
        if "role" not in chat[0]:
            return None
        if any(isinstance(one, dict) and isinstance(one.get("content"), list) for one in chat):
            return "OpenAI chat"
        if isinstance(fields.get("answer"), str) and "images" in fields:
            return "mmchat's evaluation questions"
        return "LLaMA-Factory" if "images" in fields else "OpenAI chat"
    return detect_table_format(fields)


def detect_table_format(columns: Iterable[str]) -> str | None:
    """The name of the format of rows with these normalized columns; None if it is unknown."""
    names = set(columns)
    if names & set(CHAT_KEYS):
        return "conversations"
    if names & set(QUESTION_KEYS) and names & set(ANSWER_KEYS + LABEL_KEYS):
        return "questions with answers"
    if not any(map(_names_picture, names)):
        return None
    if names & set(CAPTION_KEYS):
        return "pictures with captions"
    return "pictures with labels" if names & set(LABEL_KEYS) else None


def _names_picture(key: str) -> bool:
    return (
        key in PICTURE_KEYS
        or _NUMBERED_PICTURE.fullmatch(key) is not None
        or _PICTURE_ID.fullmatch(key) is not None
    )
