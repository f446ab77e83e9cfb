"""Splits examples into training and held-out ones; no picture is on both sides."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmchat.data.types import Example


def group_keys(example: Example) -> set[str]:
    """What an example shares with its group: its pictures, or its text if it has none."""
    pictures = {picture.sha256 for picture in example.pictures}
    return pictures or {f"text {example.sha256}"}


def split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Returns (train, held out), in the order of `examples`; about `share` is held out.

    Examples that share a picture, directly or through others, form a group and stay on one
    side; so do equal examples without a picture. Which groups are held out depends on their
    pictures and `seed`, not on the order of `examples`. If there are two groups or more, each
    side gets at least one. Each kind (class) is held out in proportion. A kind with two groups
    or more is on both sides, as long as no more than twice `share` is held out; a kind with
    one group is trained on.

    Raises ValueError unless 0 <= `share` < 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}, but must be at least 0 and below 1")
    groups = _groups(examples, seed)
    chosen = _choose_groups(groups, share) if share else []
    held = {index for group in chosen for index in group.members}
    return (
        [example for index, example in enumerate(examples) if index not in held],
        [example for index, example in enumerate(examples) if index in held],
    )


@dataclass(slots=True)
class _Group:
    rank: str
    """A hash of its content and the seed; groups are considered in this order."""
    members: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


def _groups(examples: Sequence[Example], seed: int) -> list[_Group]:
    """The groups by rank, found by union-find over the examples' keys."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        above = parents.setdefault(key, key)
        while above != key:
            parents[key] = parents[above]
            key, above = above, parents[above]
        return key

    firsts = []
    for example in examples:
        first, *others = sorted(group_keys(example))
        for other in others:
            parents[root(other)] = root(first)
        firsts.append(first)
        root(first)
    smallest: dict[str, str] = {}
    for key in parents:
        name = root(key)
        smallest[name] = min(key, smallest.get(name, key))
    found: dict[str, _Group] = {}
    for at, (example, first) in enumerate(zip(examples, firsts, strict=True)):
        name = smallest[root(first)]
        if name not in found:
            rank = hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()
            found[name] = _Group(rank)
        found[name].members.append(at)
        found[name].kinds[example.kind] += 1
    return sorted(found.values(), key=lambda group: group.rank)


def _choose_groups(groups: Sequence[_Group], share: float) -> list[_Group]:
    """Chooses the groups to hold out."""
    if len(groups) < 2:
        return []
    examples = sum(len(group.members) for group in groups)
    groups_of_kind = Counter(kind for group in groups for kind in group.kinds)
    single = sum(
        count
        for group in groups
        for kind, count in group.kinds.items()
        if groups_of_kind[kind] == 1
    )
    if 2 * single > examples:
        # Most examples have a kind of their own, so ignore kinds.
        plain = [
            _Group(group.rank, group.members, Counter({"": len(group.members)})) for group in groups
        ]
        taken = {group.rank for group in _choose_by_kind(plain, Counter({"": len(groups)}), share)}
        return [group for group in groups if group.rank in taken]
    return _choose_by_kind(groups, groups_of_kind, share)


def _choose_by_kind(
    groups: Sequence[_Group], groups_of_kind: Counter[str], share: float
) -> list[_Group]:
    """Chooses the rounded share of each kind, then one group of each kind that has none yet."""
    total: Counter[str] = Counter()
    for group in groups:
        total.update(group.kinds)
    missing = {kind: share * count for kind, count in total.items()}
    left = Counter(groups_of_kind)
    chosen: list[_Group] = []

    def take(group: _Group) -> None:
        chosen.append(group)
        for kind, count in group.kinds.items():
            missing[kind] -= count
            left[kind] -= 1

    def can_hold_out(group: _Group) -> bool:
        """Whether every kind of the group stays in the training split."""
        return all(left[kind] > 1 for kind in group.kinds)

    for group in groups:
        nearer = sum(
            abs(missing[kind]) - abs(missing[kind] - count) for kind, count in group.kinds.items()
        )
        if nearer > 0 and can_hold_out(group):
            take(group)
    taken = {group.rank for group in chosen}
    held = sum(len(group.members) for group in chosen)
    most = 2 * share * total.total()
    absent = {kind for kind, count in groups_of_kind.items() if count > 1 and left[kind] == count}
    for group in groups:
        if group.rank in taken or absent.isdisjoint(group.kinds):
            continue
        if held + len(group.members) <= most and can_hold_out(group):
            take(group)
            held += len(group.members)
            absent -= set(group.kinds)
    if not chosen:
        smallest = min(groups, key=lambda group: (not can_hold_out(group), len(group.members)))
        take(smallest)
    return chosen
