"""What these tests ask, and what they expect whatever the weights are."""

import hashlib
import os
from pathlib import Path

import psutil

from mmchat.client import Options
from mmchat.settings import builtin_adapters
from mmchat.turns import ImagePart, Turn

SCENES = builtin_adapters() / "scenes"
EXAMPLES = SCENES / "examples"
STARS = EXAMPLES / "stars.png"
PICTURE_TOKENS = 64

# Words at random, none of them twice, the one that ends an answer neither: hundreds of tokens,
# seconds. The draws are by the seed, so the length hardly depends on the weights.
LONG = Options(temperature=5.0, repetition_penalty=100.0, max_tokens=400, seed=1)
LONG_SETTINGS = {
    f"MMCHAT_GENERATION_{name.upper()}": str(getattr(LONG, name))
    for name in ("temperature", "repetition_penalty", "max_tokens", "seed")
}


def picture(name: str) -> ImagePart:
    data = (EXAMPLES / f"{name}.png").read_bytes()
    return ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)


def user(*parts: str | ImagePart) -> Turn:
    return Turn("user", parts)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}


def files() -> list[Path]:
    return sorted(EXAMPLES.glob("*.png"))


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far: unlike time, it does not count the machine's other work."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
