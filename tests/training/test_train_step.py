"""The small parts of the loop: schedules, what counts as an explosion, the order of samples."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.training.dataloader import ShuffledOrder
from mmchat.training.train_step import LossSpikeGuard, schedule_factor


@given(
    st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    st.integers(1, 500),
    st.floats(0, 0.9),
    st.floats(0, 1),
)
def test_a_schedule_stays_between_0_and_1_and_never_starts_at_0(
    kind: str, steps: int, warmup: float, decay: float
) -> None:
    factors = [schedule_factor(kind, step, steps, warmup, decay) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors) and factors[0] > 0
    rising = round(steps * warmup)
    assert all(a < b for a, b in pairwise(factors[:rising]))
    after = factors[rising:]
    assert all(a >= b for a, b in pairwise(after))


def test_one_bad_step_is_no_explosion_and_five_are() -> None:
    guard = LossSpikeGuard()
    assert not any(guard.update(1.0) for _ in range(20))
    assert not guard.update(50.0) and guard.active
    assert not guard.update(1.0) and not guard.active
    assert [guard.update(50.0) for _ in range(5)] == [False] * 4 + [True]
    assert guard.mean == pytest.approx(1.0)


def test_a_loss_that_only_wanders_is_none() -> None:
    guard = LossSpikeGuard()
    assert not any(guard.update(2 + (step % 7) * 0.5) for step in range(500))


@given(st.integers(1, 40), st.integers(0, 5))
def test_each_pass_has_every_sample_once(length: int, seed: int) -> None:
    order = ShuffledOrder(length, seed)
    for epoch in range(3):
        seen = [order[position] for position in range(epoch * length, (epoch + 1) * length)]
        assert sorted(seen) == list(range(length))
    again = ShuffledOrder(length, seed)
    assert again[2 * length] == order[2 * length]
