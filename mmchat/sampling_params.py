"""The sampling parameters of an answer, their defaults and their limits.

Settings, client, engine and command line share this definition. Does not import torch.
"""

from typing import NamedTuple

import msgspec

from mmchat.errors import EngineError


class SamplingError(EngineError, ValueError):
    """A parameter is out of range; `parameter` is its name.

    Also a ValueError, so that msgspec reports it as a validation error with its path.
    """

    def __init__(self, parameter: str, value: float, allowed: str) -> None:
        super().__init__(f"{parameter} is {value}, but must be {allowed}.")
        self.parameter = parameter


class Limit(NamedTuple):
    """The valid range of a parameter, and its description for messages."""

    low: float
    high: float
    allowed: str
    low_included: bool = True
    high_included: bool = True

    def accepts(self, value: float) -> bool:
        """Whether `value` is in range; NaN is not."""
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return above and below


LIMITS = {
    "temperature": Limit(0, 100, "between 0 (greedy) and 100"),
    "top_k": Limit(0, 2**31 - 1, "0 (off) or more"),
    "top_p": Limit(0, 1, "above 0 and at most 1 (off)", low_included=False),
    "min_p": Limit(0, 1, "0 (off) or more and below 1", high_included=False),
    "repetition_penalty": Limit(0, 100, "above 0 (1 is off) and at most 100", low_included=False),
    "max_tokens": Limit(1, 2**31 - 1, "1 or more"),
    "seed": Limit(-(2**63), 2**63 - 1, "an integer of 64 bits"),
}


class SamplingParams(msgspec.Struct, frozen=True):
    """How an answer is sampled from the model's logits.

    Raises SamplingError if a parameter is out of range.
    """

    temperature: float = 0.0
    """0 is greedy decoding: always the likeliest token."""
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not limit.accepts(value):
                raise SamplingError(name, value, limit.allowed)
