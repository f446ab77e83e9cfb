"""Answers that were given before, so that an evaluation that was stopped goes on.

One file of the cache for each combination of data, weights, adapter and number
format: an answer is used again only where the very same would be given.
"""

import contextlib
import hashlib
import os
from types import TracebackType

import msgspec
from msgspec import Struct

from mmchat.errors import DataError
from mmchat.settings import paths, private_dir


class Identity(Struct, frozen=True):
    """All that an answer depends on. Hashes are hexadecimal sha256."""

    data: str
    model: str
    weights: str
    """Empty where they cannot be known (another server)."""
    adapter: str
    adapter_hash: str
    quantization: str
    compute_dtype: str
    device: str
    options: str
    version: str

    @property
    def is_known(self) -> bool:
        """Whether it says all: otherwise nothing may be used again."""
        return bool(self.weights) and bool(self.adapter_hash or not self.adapter)

    def key(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


class Given(Struct, frozen=True):
    """The answer to the question `id`."""

    id: str
    answer: str


class Answers:
    """A file of answers, opened to add more. Each is on its way to the disk when `add` returns.

    Raises DataError where it cannot be read or written.
    """

    def __init__(self, identity: Identity) -> None:
        folder = private_dir(paths().cache / "evaluation" / identity.key())
        self.file = folder / "answers.jsonl"
        self.lasting = identity.is_known
        """Whether a later run will use them."""
        self.known: dict[str, str] = {}
        """The answers of earlier runs by the question's id."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | (0 if identity.is_known else os.O_TRUNC)
        try:
            self._stream = os.fdopen(os.open(self.file, flags, 0o600), "r+b", buffering=0)
            raw = self._stream.readall()
            if raw and not raw.endswith(b"\n"):  # the end of a run that was killed
                self._stream.write(b"\n")
        except OSError as error:
            raise self._failed(error) from error
        for line in raw.split(b"\n"):
            with contextlib.suppress(msgspec.DecodeError):
                given = msgspec.json.decode(line, type=Given)
                self.known[given.id] = given.answer

    def add(self, id_: str, answer: str) -> None:
        try:
            self._stream.write(msgspec.json.encode(Given(id_, answer)) + b"\n")
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> "Answers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"The answers cannot be kept in {self.file} ({error.strerror}): "
            "make room, or make it writable."
        )
