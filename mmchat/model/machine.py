"""What this machine's processor is fast at, asked without torch."""

import platform
from pathlib import Path


def cpu_flags() -> frozenset[str]:
    """The CPU's own list of what it can do; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            return frozenset(value.split())
    return frozenset()


def fast_in_bfloat16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 itself; else that is 10 to 30 times as slow."""
    if platform.machine().lower() in {"x86_64", "amd64"}:
        return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})
    return "bf16" in cpu_flags()
