"""Hashes of examples: equal texts and pictures have equal hashes, whatever their files."""

import hashlib
import json
from collections.abc import Iterable

from mmchat.data.types import Example


def content(example: Example) -> bytes:
    """What is hashed: one JSON line per turn; place, kind and weight do not count."""
    lines = []
    for turn in example.turns:
        parts = [["text", p] if isinstance(p, str) else ["picture", p.sha256] for p in turn.parts]
        lines.append(json.dumps([turn.role, parts]).encode() + b"\n")
    return b"".join(lines)


def hash_example(example: Example) -> str:
    """The sha256 of an example, 64 hexadecimal digits."""
    return hashlib.sha256(content(example)).hexdigest()


def hash_examples(examples: Iterable[Example]) -> str:
    """The sha256 of all examples in order, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(content(example) + b"\n")
    return digest.hexdigest()
