"""glibc's heap, and when it gives back what was freed.

By itself it keeps freed blocks of up to 32 MB for the next ones. In a step of training, where the
same sizes come again and again, that is what makes it fast. In loading it is only lost: a 4-bit model
of 0.5 billion parameters kept the unquantized form's gigabyte beside itself for as long as it lived.
On other systems nothing of this is done.
"""

import contextlib
import ctypes
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SMALL, _LARGEST = 1 << 17, 1 << 25
"""Bytes. glibc's first threshold, and the largest that it comes to by itself."""


@contextlib.contextmanager
def giving_back() -> Iterator[None]:
    """While it lasts freed memory goes back to the system at once; then the heap is as it was."""
    give_back_at_once()
    try:
        yield
    finally:
        _set(_LARGEST)
        give_back()


def give_back() -> None:
    """What is freed goes back to the system, this once."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_at_once() -> None:
    """From now on freed blocks go back at once: what is taken is what is alive.

    Each is taken anew from the system, page by page: a step of the built-in model goes at 55 % of
    its pace.
    """
    _set(_SMALL)


def _set(threshold: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, threshold)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * threshold)
