"""Cleans untrusted text before it is shown. Nothing else may bring such text to a screen.

A model's output, a file name or an imported message may contain terminal escapes: OSC 52 would
write the clipboard, a bidi override would fake a sentence.
"""

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 (without tab and newline) and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidi marks, overrides, isolates
    "\ufff9-\ufffb]"  # interlinear annotation
)
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str, keep_newlines: bool = True) -> str:
    """`text` without control characters and bidi overrides.

    Tabs and newlines are kept; with `keep_newlines=False` (titles, list rows) every run of white
    space becomes one space. Lone surrogates, which UTF-8 cannot encode, become U+FFFD.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = replace_surrogates(_CONTROLS.sub("", text))
    return text if keep_newlines else " ".join(text.split())


def replace_surrogates(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, which UTF-8 cannot encode."""
    return _SURROGATES.sub("\ufffd", text)


class Cleaner:
    """`clean` for text in pieces: `\\r\\n` may be split between two of them."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return clean(text[: len(text) - len(self._held)])

    def rest(self) -> str:
        held, self._held = self._held, ""
        return clean(held)
