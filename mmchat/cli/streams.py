"""The three standard streams, prepared before any command runs."""

import io
import os
import sys
from typing import Any

from mmchat.errors import MmchatError

_replaced: list[object] = []
"""The streams that ours took the place of: collected as garbage, they would close their files."""


class OutputError(MmchatError):
    """Standard output, or a file that a command writes, cannot be written."""


class _Stdout(io.FileIO):
    """Raises OutputError when it cannot write, whoever writes: click, rich or we."""

    failed = False

    def write(self, data: Any, /) -> int:
        if self.failed:  # Python flushes what is left at its end: it was reported already
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            raise  # the reader has left: click ends the command quietly
        except OSError as error:
            self.failed = True
            raise OutputError(f"The output cannot be written ({error.strerror}).") from error


class _Stderr(io.FileIO):
    """Loses what it cannot write: a remark must not end the command."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Opens the streams that the caller closed (`2>&-`) on /dev/null, and handles write errors.

    Without this, Python has None for a closed stream, and the next file that is opened gets its
    number. A character that a terminal cannot show becomes a question mark.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115
    sys.stdout = _writer(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _writer(_Stderr(2, "w", closefd=False), sys.stderr)


def _writer(raw: io.FileIO, replaced: object) -> io.TextIOWrapper:
    _replaced.append(replaced)
    old = replaced if isinstance(replaced, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=old.encoding if old else "utf-8",
        errors="replace",
        line_buffering=raw.isatty(),
        write_through=old is not None and old.write_through,
    )
