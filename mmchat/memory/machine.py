"""This machine: whether its processor is fast in bfloat16, and how much memory is free. Without torch.

By default glibc's malloc keeps freed blocks of up to 32 MB for later. That makes training fast, because the
same sizes are needed at every step. After loading, the kept memory is wasted: a 4-bit model of 0.5 billion
parameters kept a gigabyte of its unquantized weights until the process ended. On other systems `eager_trim`,
`trim` and `set_eager_trim` have no effect.
"""

import contextlib
import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmchat.settings import ModelSettings, Quantization

WeightFormat = Literal["4bit", "bf16", "fp32"]
"""How the weights of a model are kept in memory."""

_GPU_QUERY_SECONDS = 5
_BFLOAT16_CAPABILITY = 8.0
"""The compute capability from which NVIDIA GPUs multiply matrices of bfloat16."""
_LOW_CAPABILITIES = frozenset({"default", "avx", "avx2"})
"""Values of ATEN_CPU_CAPABILITY with which torch does not use AVX-512."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_FIRST_THRESHOLD, _LAST_THRESHOLD = 1 << 17, 1 << 25
"""Bytes: glibc's threshold at the start, and the largest that it raises it to."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a model is computed on.

    The whole process can use `free` bytes; `total` bytes are built in (0 if that is not known). `itemsize`
    is the bytes of a number of the dtype in which 4-bit models compute.
    """

    device: Literal["cpu", "cuda"]
    free: int
    itemsize: int
    total: int = 0

    @property
    def plain_format(self) -> WeightFormat:
        """How a model that is not 4-bit is kept."""
        return "bf16" if self.itemsize == 2 else "fp32"

    def itemsize_of(self, weight_format: WeightFormat) -> int:
        """Bytes of a number of the dtype in which a model of `weight_format` computes."""
        return {"bf16": 2, "fp32": 4}.get(weight_format, self.itemsize)


def this_machine(settings: ModelSettings) -> Machine:
    """The machine as the engine would use it with `settings`."""
    import psutil

    gpu = _free_gpu_memory() if settings.device in ("auto", "cuda") else None
    total = int(psutil.virtual_memory().total)
    device: Literal["cpu", "cuda"]
    if gpu is not None:
        device, total, (free, fast) = "cuda", 0, gpu
    else:
        device, free = "cpu", available_memory()
        fast = settings.device == "mps" or fast_in_bfloat16()
    if settings.compute_dtype != "auto":
        fast = settings.compute_dtype == "bf16"
    return Machine(device, free, 2 if fast else 4, total)


def weight_format_of(quantization: Quantization) -> WeightFormat:
    """How a model is kept with the setting model.quantization; assumes that bitsandbytes works here."""
    return "4bit" if quantization == "auto" else quantization


def available_memory() -> int:
    """Bytes that a process can still take, within the limit of its container if it has one."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        with contextlib.suppress(OSError, ValueError, KeyError):
            # The page cache counts as used, but is freed when memory is needed.
            fields = (group / "memory.stat").read_text().split()
            used -= int(dict(zip(fields[::2], fields[1::2], strict=False))["inactive_file"])
        free = min(free, max(limit - used, 0))
    return free


def own_memory() -> int:
    """Bytes that only this process holds, without files and shared libraries."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags; empty if the system does not list them."""
    facts = _cpu_fields()
    return frozenset(facts.get("flags", facts.get("features", "")).split())


def cpu_name() -> str:
    """The CPU's name; empty if the system does not have it."""
    return _cpu_fields().get("model name", "")


def _cpu_fields() -> dict[str, str]:
    """The fields of the first processor in Linux's /proc/cpuinfo, by lower-case names."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    return facts


def fast_in_bfloat16() -> bool:
    """Whether the CPU has instructions for matrices of bfloat16; without, they are 10 to 30 times as slow."""
    if platform.machine().lower() in {"x86_64", "amd64"}:
        if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in _LOW_CAPABILITIES:
            return False
        return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})
    return "bf16" in cpu_flags()


def _free_gpu_memory() -> tuple[int, bool] | None:
    """(free bytes of the first NVIDIA GPU that programs may use, whether it is fast in bfloat16).

    None if there is none.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    program = shutil.which("nvidia-smi")
    if program is None or not visible or visible == "-1":
        return None
    query = "--query-gpu=memory.free,compute_cap"
    with contextlib.suppress(OSError, LookupError, ValueError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits", f"--id={visible}"],
            capture_output=True,
            text=True,
            timeout=_GPU_QUERY_SECONDS,
            check=True,
        )
        free, capability = done.stdout.splitlines()[0].split(",")
        return int(free) * 2**20, float(capability) >= _BFLOAT16_CAPABILITY
    return None


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
