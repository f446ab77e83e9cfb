"""Held-out and train: never a picture on both sides, the same whatever the order."""

import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.data import Example, Picture, split
from mmchat.data.holdout import group_keys
from mmchat.turns import Turn


def picture(number: int) -> Picture:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return Picture(digest, "image/png", 8, 8, f"{number}.png", held=b"")


def example(pictures: tuple[int, ...] = (), answer: str = "a", kind: str = "") -> Example:
    turns = (Turn("user", (*map(picture, pictures), "what?")), Turn("assistant", (answer,)))
    return Example(turns, kind, "place")


examples = st.lists(
    st.builds(
        example,
        st.lists(st.integers(0, 12), max_size=3).map(tuple),
        st.sampled_from("abcd"),
        st.sampled_from(["", "kite", "owl", "hawk"]),
    ),
    max_size=40,
)
shares = st.floats(0.01, 0.6)


def groups(data: list[Example]) -> list[list[Example]]:
    """The groups, found in another way: merging until nothing changes."""
    found: list[tuple[set[str], list[Example]]] = []
    for one in data:
        bound, members = set(group_keys(one)), [one]
        for group in [group for group in found if group[0] & bound]:
            bound |= group[0]
            members += group[1]
            found.remove(group)
        found.append((bound, members))
    return [members for _, members in found]


@settings(max_examples=150, deadline=None)
@given(examples, shares, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_rules(data: list[Example], share: float, seed: int, random_: random.Random) -> None:
    train, held_out = split(data, share, seed)
    assert Counter(map(id, train + held_out)) == Counter(map(id, data))
    assert [id(one) for one in data if one in held_out] == [id(one) for one in held_out]
    for group in groups(data):
        inside = sum(any(one is other for other in held_out) for one in group)
        assert inside in (0, len(group))
    assert bool(held_out) == (len(groups(data)) >= 2) and (not data or train)
    assert split(data, share, seed) == (train, held_out)
    mixed = random_.sample(data, len(data))
    again, held_again = split(mixed, share, seed)
    assert Counter(map(repr, again)) == Counter(map(repr, train))
    assert Counter(map(repr, held_again)) == Counter(map(repr, held_out))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(2, 30), st.floats(0.05, 0.4), st.integers(0, 9))
def test_every_class_is_on_both_sides(classes: int, each: int, share: float, seed: int) -> None:
    data = [example((100 * k + n,), f"{k}", f"{k}") for k in range(classes) for n in range(each)]
    train, held_out = split(data, share, seed)
    assert len({one.kind for one in train}) == classes
    if 2 * share * each >= 1:
        assert len({one.kind for one in held_out}) == classes
    assert len(held_out) <= max(2 * share * len(data), 1) + classes / 2
    if share * each >= 1:
        assert abs(len(held_out) - share * len(data)) <= classes / 2 + 1e-9


def test_the_share_is_met_and_the_seed_decides() -> None:
    data = [example((n,)) for n in range(1000)]
    found = {seed: split(data, 0.15, seed)[1] for seed in (1, 2)}
    assert [len(held_out) for held_out in found.values()] == [150, 150]
    shared = [one for one in found[1] if one in found[2]]
    assert 5 < len(shared) < 60  # 22.5 of 150 by chance


def test_more_data_leaves_most_where_it_was() -> None:
    data = [example((n,)) for n in range(400)]
    before = {one.pictures[0].sha256 for one in split(data[:390], 0.2, 1)[1]}
    after = {one.pictures[0].sha256 for one in split(data, 0.2, 1)[1]}
    assert len(before & after) > 70


def test_questions_of_many_kinds_about_each_picture() -> None:
    data = [example((n,), "a", f"kind {k}") for n in range(200) for k in range(8)]
    train, held_out = split(data, 0.1, 3)
    assert len(held_out) == 160 and len(train) == 1440
    assert len({one.kind for one in held_out}) == 8


def test_kinds_of_one_example_each_say_nothing() -> None:
    data = [example((n,), "a", f"kind {n}") for n in range(100)]
    assert len(split(data, 0.2, 1)[1]) == 20


def test_a_class_of_one_picture_is_learned() -> None:
    data = [example((n,), "a", "many") for n in range(50)] + [example((99,), "b", "one")]
    assert all("one" in {e.kind for e in split(data, 0.2, seed)[0]} for seed in range(20))


def test_chained_pictures_are_one_group() -> None:
    data = [example((n, n + 1)) for n in range(50)] + [example((500,))]
    train, held_out = split(data, 0.3, 1)
    assert (len(train), len(held_out)) == (50, 1)
    assert split(data[:50], 0.3, 1) == (data[:50], [])


def test_a_large_chain_takes_no_time() -> None:
    data = [example((n, n + 1)) for n in range(20_000)]
    assert split(data, 0.3, 1)[1] == []


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(ValueError, match="share is"):
        split([], share, 1)
    assert split([example()], 0, 1) == ([example()], [])
