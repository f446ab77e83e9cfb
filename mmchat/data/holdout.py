"""Splits examples into those to train on and held-out ones: no picture is ever on both sides."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmchat.data import digest
from mmchat.data.types import Example


def keys(example: Example) -> set[str]:
    """What binds it to other examples: its pictures, or its words if it has none."""
    pictures = {picture.sha256 for picture in example.pictures}
    return pictures or {f"text {digest.of_example(example)}"}


def split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Returns (train, held-out) in the order of `examples`; about `share` of them are held out.

    Examples that share a picture, directly or through others, are a group and stay on one
    side, and so do equal examples without a picture. Which groups are held out depends on
    their pictures and `seed`, never on the order of `examples`. With two groups or more,
    each side gets one. Each kind (class) is held out in proportion. One with two groups or
    more is on both sides, as long as that holds out no more than twice `share`; one with a
    single group is learned.

    Raises ValueError if `share` is not at least 0 and below 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}, and must be at least 0 and below 1")
    groups = _groups(examples, seed)
    chosen = _chosen(groups, share) if share else []
    held = {at for group in chosen for at in group.members}
    return (
        [example for at, example in enumerate(examples) if at not in held],
        [example for at, example in enumerate(examples) if at in held],
    )


@dataclass(slots=True)
class _Group:
    rank: str
    """A hash of its content and the seed: groups are looked at in this order."""
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
        first, *others = sorted(keys(example))
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


def _chosen(groups: Sequence[_Group], share: float) -> list[_Group]:
    """The groups that are held out."""
    if len(groups) < 2:
        return []
    examples = sum(len(group.members) for group in groups)
    having = Counter(kind for group in groups for kind in group.kinds)
    single = sum(
        count for group in groups for kind, count in group.kinds.items() if having[kind] == 1
    )
    if 2 * single > examples:
        # Most examples are of a kind of their own, so kinds say nothing.
        plain = [
            _Group(group.rank, group.members, Counter({"": len(group.members)})) for group in groups
        ]
        taken = {group.rank for group in _by_kind(plain, Counter({"": len(groups)}), share)}
        return [group for group in groups if group.rank in taken]
    return _by_kind(groups, having, share)


def _by_kind(groups: Sequence[_Group], having: Counter[str], share: float) -> list[_Group]:
    """Each kind's share, rounded, then one group of each kind without any.

    `having` is the number of groups by kind.
    """
    whole: Counter[str] = Counter()
    for group in groups:
        whole.update(group.kinds)
    missing = {kind: share * count for kind, count in whole.items()}
    left = Counter(having)
    chosen: list[_Group] = []

    def take(group: _Group) -> None:
        chosen.append(group)
        for kind, count in group.kinds.items():
            missing[kind] -= count
            left[kind] -= 1

    def spares(group: _Group) -> bool:
        """Whether each of its kinds stays among the examples that are learned."""
        return all(left[kind] > 1 for kind in group.kinds)

    for group in groups:
        nearer = sum(
            abs(missing[kind]) - abs(missing[kind] - count) for kind, count in group.kinds.items()
        )
        if nearer > 0 and spares(group):
            take(group)
    taken = {group.rank for group in chosen}
    held = sum(len(group.members) for group in chosen)
    most = 2 * share * whole.total()
    absent = {kind for kind, count in having.items() if count > 1 and left[kind] == count}
    for group in groups:
        if group.rank in taken or absent.isdisjoint(group.kinds):
            continue
        if held + len(group.members) <= most and spares(group):
            take(group)
            held += len(group.members)
            absent -= set(group.kinds)
    if not chosen:
        smallest = min(groups, key=lambda group: (not spares(group), len(group.members)))
        take(smallest)
    return chosen
