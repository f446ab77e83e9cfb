"""Errors about a single sample, and untrusted values as safe text for messages."""

from typing import Literal

from mmchat.sanitize import clean


class SampleError(Exception):
    """A sample cannot be used. The message continues `PLACE: …` and becomes a `Problem`."""

    def __init__(self, why: str, about: Literal["", "missing", "broken"] = "") -> None:
        super().__init__(why)
        self.about: Literal["", "missing", "broken"] = about


def printable(value: object) -> str:
    """An untrusted value for a message: clean, on one line, at most 160 characters."""
    text = clean(str(value), keep_newlines=False)
    return text if len(text) <= 160 else f"{text[:60]}…{text[-90:]}"


def type_name(value: object) -> str:
    """The JSON type of a value, in words."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bytes: "raw bytes"}
    names |= {bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else "something else")
