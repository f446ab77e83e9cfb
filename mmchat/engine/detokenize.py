"""Decodes tokens to text, one token at a time.

A character may be spread over several tokens, and a stop string over several pieces of text.
Both are held back until they are complete, so that emitted text never changes.
"""

import codecs
import re
from collections.abc import Sequence
from typing import Any, Protocol

_REPLACEMENT = "\ufffd"
_MAX_HELD_TOKENS = 8
"""A UTF-8 character has at most 4 bytes, so at most 4 tokens."""

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class Detokenizer(Protocol):
    """Decodes a growing sequence of tokens; special tokens have no text."""

    def push(self, token: int) -> str:
        """Returns the text that became final with `token`, which may be empty."""

    def finish(self) -> str:
        """Returns the text that was held back; an incomplete character becomes U+FFFD."""


def detokenizer_for(tokenizer: Any) -> Detokenizer:
    """Returns the byte decoder for a byte-level BPE, otherwise the window decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(backend.decoder).__name__ == "ByteLevel":
        return ByteLevelDetokenizer(tokenizer)
    return WindowDetokenizer(tokenizer)


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids without text: the named special tokens, and added tokens marked as special."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset([*tokenizer.all_special_ids, *(id_ for id_, token in added if token.special)])


class ByteLevelDetokenizer:
    """For byte-level BPE (GPT-2's byte alphabet): tokens to bytes, bytes to UTF-8.

    Takes constant time per token. The text equals `tokenizer.decode` of the whole sequence, even
    if it is not valid UTF-8.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return "" if piece is None else self._decoder.decode(_piece_bytes(piece))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For all other tokenizers: decodes the last few tokens with and without the new one.

    Tokens whose text was emitted stay in the window as context, because decoders treat the first
    token of a text differently (sentencepiece drops its space). The text equals
    `tokenizer.decode` of the whole sequence if its byte tokens are valid UTF-8. If they are not,
    the decoder would change characters that were already emitted; those stay.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._window: list[int] = []
        self._emitted = 0  # tokens of the window whose text was emitted
        self._emitted_text = ""
        self._bytes = codecs.getincrementaldecoder("utf-8")()

    def push(self, token: int) -> str:
        if token in self._special:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        held = len(self._window) - self._emitted
        if text.endswith(_REPLACEMENT) and held < _MAX_HELD_TOKENS and not self._is_whole(token):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        return self._emit(self._decode(self._window))

    def _is_whole(self, token: int) -> bool:
        """Whether a byte token (`<0xEF>`) ends a character (maybe U+FFFD itself) or cannot begin one."""
        byte = _BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(token) or "")
        if byte is None:
            self._bytes.reset()
            return False
        try:
            return self._bytes.decode(bytes.fromhex(byte[1])) != ""
        except UnicodeDecodeError:
            self._bytes.reset()
            return True

    def _emit(self, text: str) -> str:
        new_tokens = self._window[self._emitted :]
        if text.startswith(self._emitted_text):
            new = text[len(self._emitted_text) :]
        else:
            new = self._decode(new_tokens)
        if new:
            # The new tokens are the context of the next ones.
            self._window = new_tokens
            self._emitted_text = self._decode(new_tokens)
            self._bytes.reset()
        self._emitted = len(self._window)
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """Passes text through up to the first stop string, which is never emitted.

    The stop string that is complete first ends the text; if two end at the same character, the
    longer one wins. The result does not depend on how the text was split into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Returns the text that cannot be part of a stop string; sets `stopped`."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        self._held += text
        ends = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        if ends:
            self.stopped = True
            passed, self._held = self._held[: min(ends)[1]], ""
            return passed
        keep = self._undecided()
        passed = self._held[: len(self._held) - keep]
        self._held = self._held[len(passed) :]
        return passed

    def finish(self) -> str:
        """Returns the text that was held back, because no stop string followed."""
        held, self._held = self._held, ""
        return held

    def _undecided(self) -> int:
        """Length of the longest suffix of the held text that could begin a stop string."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


def _piece_bytes(piece: str) -> bytes:
    try:
        return bytes([_LETTER_BYTES[letter] for letter in piece])
    except KeyError:  # an added token is plain text
        return piece.encode("utf-8", "replace")


def _byte_letters() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 as is, the other bytes from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, following = {}, 0x100
    for byte in range(256):
        if byte in printable:
            letters[chr(byte)] = byte
        else:
            letters[chr(following)] = byte
            following += 1
    return letters


_LETTER_BYTES = _byte_letters()
