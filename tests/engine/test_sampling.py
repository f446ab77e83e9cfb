"""Each filter against a plain reference in Python floats, and all of them against transformers."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmchat.engine.sampling import (
    Sampler,
    apply_temperature,
    greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)
from mmchat.errors import EngineError
from mmchat.sampling_params import SamplingParams

values = st.lists(
    st.floats(-20, 20, allow_nan=False, width=32), min_size=2, max_size=24, unique=True
)


def kept(logits: Tensor) -> set[int]:
    return {index for index, value in enumerate(logits.tolist()) if value != -math.inf}


def probabilities(logits: list[float]) -> list[float]:
    highest = max(logits)
    weights = [math.exp(value - highest) for value in logits]
    return [weight / sum(weights) for weight in weights]


@given(values, st.integers(1, 30))
def test_top_k_keeps_the_k_highest(logits: list[float], k: int) -> None:
    ranked = sorted(range(len(logits)), key=lambda index: -logits[index])
    assert kept(keep_top_k(torch.tensor(logits), k)) == set(ranked[:k])


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    assert kept(keep_top_k(torch.tensor([1.0, 3.0, 1.0, 0.0]), 2)) == {0, 1, 2}


@given(values, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: list[float], p: float) -> None:
    ranked = sorted(range(len(logits)), key=lambda index: -logits[index])
    shares = probabilities(logits)
    expected, reached = set(), 0.0
    for index in ranked:
        assume(abs(reached - p) > 1e-4)  # at the border float32 and Python may differ
        if reached >= p:
            break
        expected.add(index)
        reached += shares[index]
    assert kept(keep_top_p(torch.tensor(logits), p)) == expected


@given(values, st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(
    logits: list[float], p: float
) -> None:
    shares = probabilities(logits)
    border = p * max(shares)
    assume(all(abs(share - border) > 1e-6 for share in shares))
    expected = {index for index, share in enumerate(shares) if share > border}
    assert kept(keep_min_p(torch.tensor(logits), p)) == expected


@given(values, st.floats(0.5, 3.0), st.data())
def test_the_penalty_touches_only_what_was_seen(
    logits: list[float], penalty: float, data: st.DataObject
) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    result = penalize_repetition(torch.tensor(logits), torch.tensor(seen), penalty).tolist()
    for value, was_seen, new in zip(logits, seen, result, strict=True):
        expected = (value * penalty if value < 0 else value / penalty) if was_seen else value
        assert new == pytest.approx(expected, rel=1e-5)


@given(values, st.floats(0.05, 10))
def test_temperature_divides(logits: list[float], temperature: float) -> None:
    expected = [value / temperature for value in logits]
    assert apply_temperature(torch.tensor(logits), temperature).tolist() == pytest.approx(
        expected, rel=1e-5, abs=1e-30
    )


@given(
    values,
    st.floats(0.1, 3.0),
    st.integers(1, 10),
    st.floats(0.05, 0.99),
    st.floats(0.01, 0.9),
    st.floats(0.6, 2.0),
    st.data(),
)
def test_the_whole_chain_equals_transformers(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
    data: st.DataObject,
) -> None:
    prompt = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=8))
    row = torch.tensor(logits)
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(penalty),
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(top_k),
            TopPLogitsWarper(top_p),
            MinPLogitsWarper(min_p),
        ]
    )
    theirs = chain(torch.tensor([prompt]), row[None].clone())[0]
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[prompt] = True
    ours = penalize_repetition(row, seen, penalty)
    ours = keep_top_k(apply_temperature(ours, temperature), top_k)
    ours = keep_min_p(keep_top_p(ours, top_p), min_p)
    assert torch.equal(ours, theirs)


def draws(seed: int | None, count: int = 30, **options: float) -> list[int]:
    rows = torch.randn(count, 50, generator=torch.Generator().manual_seed(5))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed, **options))  # type: ignore[arg-type]
    return [sampler.next(row) for row in rows]


def test_the_same_seed_draws_the_same_tokens_whatever_the_global_dice_do() -> None:
    torch.manual_seed(1)
    first = draws(7)
    torch.manual_seed(2)
    torch.rand(13)
    assert draws(7) == first
    assert draws(8) != first
    assert draws(None) != draws(None)


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0))
    row = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    counts = Counter(sampler.next(row) for _ in range(4000))
    assert set(counts) == {0, 1, 2}
    for token, share in enumerate([0.5, 0.3, 0.2]):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.04)


def test_the_penalty_counts_prompt_and_answer() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), prompt=[0, 99])
    row = torch.tensor([3.0, 2.0, 1.9])
    assert [sampler.next(row) for _ in range(3)] == [1, 2, 0]


def test_greedy_takes_the_first_of_equals() -> None:
    assert greedy(torch.tensor([1.0, 2.0, 2.0])) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_broken_logits_are_one_sentence(bad: float, temperature: float) -> None:
    with pytest.raises(EngineError, match="logits are not finite"):
        Sampler(SamplingParams(temperature=temperature)).next(torch.tensor([0.0, bad, 1.0]))
    with pytest.raises(EngineError, match="logits are not finite"):
        Sampler(SamplingParams(temperature=temperature)).next(torch.full((3,), -math.inf))


def test_a_temperature_too_small_for_float32_is_greedy() -> None:
    sampler = Sampler(SamplingParams(temperature=1e-40, seed=1))
    assert [sampler.next(torch.tensor([1.0, 90.0, 89.9])) for _ in range(5)] == [1] * 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_number_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(EngineError, match=f"{name} is {value}"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
