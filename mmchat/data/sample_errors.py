"""Why a sample is left out, in words that are safe to show."""

from typing import Literal

from mmchat.sanitize import clean


class SampleError(Exception):
    """A sample cannot be used: the rest of the sentence after its place. It becomes a `Problem`."""

    def __init__(self, why: str, about: Literal["", "missing", "broken"] = "") -> None:
        super().__init__(why)
        self.about: Literal["", "missing", "broken"] = about


def printable(value: object) -> str:
    """A foreign name or value as it may stand in a sentence: on one line, clean, not too long."""
    text = clean(str(value), keep_newlines=False)
    return text if len(text) <= 160 else f"{text[:60]}…{text[-90:]}"


def type_name(value: object) -> str:
    """What a value is, in words."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bytes: "raw bytes"}
    names |= {bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else "something else")
