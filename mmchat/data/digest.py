"""Hashes of examples: the same words and pictures have the same hash, wherever they lie."""

import hashlib
import json
from collections.abc import Iterable

from mmchat.data.types import Example


def content(example: Example) -> bytes:
    """Its turns, one JSON line each; place, kind and weight do not count."""
    lines = []
    for turn in example.turns:
        parts = [["text", p] if isinstance(p, str) else ["picture", p.sha256] for p in turn.parts]
        lines.append(json.dumps([turn.role, parts]).encode() + b"\n")
    return b"".join(lines)


def of_example(example: Example) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content(example)).hexdigest()


def of_examples(examples: Iterable[Example]) -> str:
    """Of all examples, in order; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(content(example) + b"\n")
    return digest.hexdigest()
