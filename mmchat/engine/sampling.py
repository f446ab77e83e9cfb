"""From the logits of one position to the next token.

All functions are pure and work on one row of float32 logits `(vocab,)`; a
removed token gets -inf. They are applied in the order that transformers'
`generate` uses, so that the same numbers mean the same thing elsewhere:

    repetition penalty → temperature → top-k → top-p → min-p → softmax → draw

Temperature 0 is greedy: penalty, then the highest logit, nothing else. So is one
so small that float32 could not hold the quotients.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mmchat.errors import EngineError

_REMOVED = -math.inf
_COLDEST = 1e-5


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens of `seen` (`(vocab,)` bool) less likely for `penalty` > 1 (CTRL, 1909.05858).

    Positive logits are divided and negative ones multiplied, once a token,
    however often it occurred.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Flatten (`temperature` > 1) or sharpen (< 1) the distribution."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` highest logits; all of those that tie with the last one stay (1805.04833)."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < torch.topk(logits, k).values[-1], _REMOVED)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches `p` (nucleus, 1904.09751)."""
    ascending, order = torch.sort(logits)
    # The tail is summed from its small end, where float32 is exact enough; the likeliest always stays.
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - p
    removed[-1] = False
    return logits.masked_fill(torch.zeros_like(removed).scatter(0, order, removed), _REMOVED)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least `p` times as likely as the likeliest (min-p, 2407.01082)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), _REMOVED)


def greedy(logits: Tensor) -> int:
    """The token of the highest logit, the first of equals.

    Raises:
        EngineError: the highest logit is NaN or infinite.
    """
    token = int(logits.argmax())
    # argmax takes NaN for the highest, so one look at the winner is enough.
    if not math.isfinite(float(logits[token])):
        raise EngineError(
            "The model gave no valid probabilities (its numbers overflowed or its weights are damaged): "
            "load it without its adapter if it has one, with --quantization fp32, or fetch it again."
        )
    return token


class Sampler:
    """Draws the tokens of one answer.

    The draw happens on the CPU in float32 with a generator of its own: the
    same seed and the same logits give the same tokens on every device, and
    nothing else in the process moves the dice.

    Raises:
        EngineError: a number is out of its range; the sentence names it.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        prompt: Iterable[int] = (),
    ) -> None:
        _require("temperature", temperature, 0 <= temperature <= 100, "from 0 (greedy) to 100")
        _require("top_k", top_k, top_k >= 0, "0 (off) or more")
        _require("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1 (off)")
        _require("min_p", min_p, 0 <= min_p <= 1, "from 0 (off) to 1")
        _require(
            "repetition_penalty",
            repetition_penalty,
            0 < repetition_penalty <= 100,
            "above 0 (1 is off)",
        )
        self.temperature = temperature if temperature >= _COLDEST else 0.0
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed % 2**63)
        self._prompt = list(prompt) if repetition_penalty != 1 else []
        self._seen: Tensor | None = None

    def next(self, logits: Tensor) -> int:
        """The next token id for float32 `logits` `(vocab,)`; remembers it for the penalty.

        Raises:
            EngineError: the logits hold no usable highest value.
        """
        if self.repetition_penalty != 1:
            logits = penalize_repetition(logits, self._seen_tokens(logits), self.repetition_penalty)
        likeliest = greedy(logits)
        token = likeliest if self.temperature == 0 else self._draw(logits.cpu())
        if self._seen is not None:
            self._seen[token] = True
        return token

    def _draw(self, logits: Tensor) -> int:
        logits = apply_temperature(logits, self.temperature)
        if self.top_k > 0:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = keep_min_p(logits, self.min_p)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))

    def _seen_tokens(self, logits: Tensor) -> Tensor:
        if self._seen is None:
            self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            # A placeholder of a picture may lie beyond the vocabulary that has logits.
            known = [token for token in self._prompt if token < logits.shape[-1]]
            self._seen[torch.tensor(known, dtype=torch.long, device=logits.device)] = True
        return self._seen


def _require(name: str, value: float, valid: bool, allowed: str) -> None:
    if not valid:
        raise EngineError(f"{name} is {value}, but must be {allowed}.")
