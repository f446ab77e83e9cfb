"""When glibc's malloc returns freed memory to the system.

By default it keeps freed blocks of up to 32 MB for later. That makes training fast, because the same sizes
are needed at every step. After loading, the kept memory is wasted: a 4-bit model of 0.5 billion parameters
kept a gigabyte of its unquantized weights until the process ended. On other systems nothing here has an
effect.
"""

import contextlib
import ctypes
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_FIRST_THRESHOLD, _LAST_THRESHOLD = 1 << 17, 1 << 25
"""Bytes: glibc's threshold at the start, and the largest that it raises it to."""


@contextlib.contextmanager
def eager_trim() -> Iterator[None]:
    """Inside this context freed memory goes back to the system at once; afterwards malloc is as before."""
    set_eager_trim()
    try:
        yield
    finally:
        _set_thresholds(_LAST_THRESHOLD)
        trim()


def trim() -> None:
    """Returns the memory that is free now to the system, once."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def set_eager_trim() -> None:
    """From now on freed memory goes back at once, so the process holds only what is in use.

    The system then provides each new block page by page: a training step of the built-in model runs at
    55 % of its speed.
    """
    _set_thresholds(_FIRST_THRESHOLD)


def _set_thresholds(size: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, size)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * size)
