"""Samples the next token from the logits of one position.

All functions are pure and take float32 logits `(vocab,)`. A removed token gets -inf. The order
is that of transformers' `generate`, so that the parameters mean the same:

    repetition penalty → temperature → top-k → top-p → min-p → softmax → draw

Temperature 0 is greedy: only the penalty applies, then the highest logit wins. So is a
temperature so small that the quotients would overflow float32.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mmchat.errors import EngineError
from mmchat.sampling_params import SamplingParams

GREEDY = SamplingParams()

_REMOVED = -math.inf
_MIN_TEMPERATURE = 1e-5


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens of `seen` (`(vocab,)` bool) less likely if `penalty` > 1 (CTRL, 1909.05858).

    Positive logits are divided and negative ones multiplied, once per token, however often it
    occurred.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Flatten (`temperature` > 1) or sharpen (< 1) the distribution."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` highest logits; tokens that tie with the last one stay too (1805.04833)."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < torch.topk(logits, k).values[-1], _REMOVED)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches `p` (nucleus, 1904.09751)."""
    ascending, order = torch.sort(logits)
    # Summed from the smallest, where float32 is precise enough. The likeliest always stays.
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - p
    removed[-1] = False
    return logits.masked_fill(torch.zeros_like(removed).scatter(0, order, removed), _REMOVED)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least `p` times as likely as the likeliest (min-p, 2407.01082)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), _REMOVED)


def greedy(logits: Tensor) -> int:
    """The token with the highest logit; the first one of a tie.

    Raises:
        EngineError: the highest logit is NaN or infinite.
    """
    token = int(logits.argmax())
    # argmax treats NaN as the highest, so checking the winner is enough.
    if not math.isfinite(float(logits[token])):
        raise EngineError(
            "The model's logits are not finite: its numbers overflowed or its weights are damaged. "
            "Load it without an adapter, with --quantization fp32, or download it again."
        )
    return token


class Sampler:
    """Samples the tokens of one answer.

    Sampling runs on the CPU in float32 with its own generator, so that the same seed and logits
    give the same tokens on every device.
    """

    def __init__(self, params: SamplingParams = GREEDY, prompt: Iterable[int] = ()) -> None:
        """`prompt` holds the token ids of the prompt, for the repetition penalty."""
        self._params = params
        self._temperature = params.temperature if params.temperature >= _MIN_TEMPERATURE else 0.0
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed % 2**63)
        self._prompt = list(prompt) if params.repetition_penalty != 1 else []
        self._seen: Tensor | None = None

    def next(self, logits: Tensor) -> int:
        """Samples the next token id from float32 `logits` `(vocab,)`; remembers it for the penalty.

        Raises:
            EngineError: the highest logit is NaN or infinite.
        """
        penalty = self._params.repetition_penalty
        if penalty != 1:
            logits = penalize_repetition(logits, self._seen_tokens(logits), penalty)
        likeliest = greedy(logits)
        token = likeliest if self._temperature == 0 else self._draw(logits.cpu())
        if self._seen is not None:
            self._seen[token] = True
        return token

    def _draw(self, logits: Tensor) -> int:
        params = self._params
        logits = apply_temperature(logits, self._temperature)
        if params.top_k > 0:
            logits = keep_top_k(logits, params.top_k)
        if params.top_p < 1:
            logits = keep_top_p(logits, params.top_p)
        if params.min_p > 0:
            logits = keep_min_p(logits, params.min_p)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))

    def _seen_tokens(self, logits: Tensor) -> Tensor:
        if self._seen is None:
            self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            # A picture's placeholder id may be outside the vocabulary of the logits.
            known = [token for token in self._prompt if token < logits.shape[-1]]
            self._seen[torch.tensor(known, dtype=torch.long, device=logits.device)] = True
        return self._seen
