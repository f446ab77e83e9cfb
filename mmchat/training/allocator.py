"""glibc's malloc, told to give large blocks back.

It takes a large block from the system and gives it back, but raises the size from which on it does
so to that of the largest block that was freed, up to 32 MB. Then the tensors of a training step
lie in its heap between each other's gaps: on a CPU a step held up to twice what was alive in it
(635 instead of 326 MB for a 3M-parameter model, 872 instead of 593 MB for 32M; 4 % more time).
"""

import contextlib
import ctypes

LARGE = 1 << 20
"""Bytes from which on a block is the system's again as soon as it is free."""
_M_MMAP_THRESHOLD = -3  # malloc.h


def return_large_blocks() -> bool:
    """Fixes that size for this process; -> whether its C library could be told."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE))
    return False
