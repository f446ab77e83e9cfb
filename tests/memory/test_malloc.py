"""Memory that was freed while a model was loaded goes back to the system."""

import platform
import subprocess
import sys

import pytest

HELD = """
import contextlib, sys
import numpy as np
from mmchat.memory.machine import eager_trim

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096

def load():
    # As in loading: large blocks are freed, small ones between them stay.
    kept = []
    for number in range(60):
        large = np.ones(1 << 18)  # 2 MB
        kept.append((large, np.ones(3000)))
    return [small for _, small in kept]

np.ones(1 << 21)  # 16 MB, freed: from now on glibc takes such blocks from its heap
before = resident()
with eager_trim() if sys.argv[1] == "back" else contextlib.nullcontext():
    small = load()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of glibc")
def test_freed_blocks_go_back_to_the_system() -> None:
    def held(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", HELD, how],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return int(done.stdout)

    assert held("not") > 60_000_000  # or the next line would prove nothing
    assert held("back") < 5_000_000
