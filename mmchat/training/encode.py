"""From examples to what is packed: the engine's own encoding, answer-only labels, nothing cut in half.

A label stands one place before the token it asks for. Examples about the same picture share it
(`packing`): the picture stands once, and what is said of it in branches of their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from mmchat.data.types import Example, Picture, Problem
from mmchat.errors import ImageError, ModelError
from mmchat.prompt.chat_encoding import EncodedChat, Placeholders, encode_chat
from mmchat.prompt.pixel_values import PictureModel, check_shape, picture_inputs
from mmchat.training.packing import IGNORED, Branch, Tree, next_labels
from mmchat.turns import Turn

MOST_BRANCHES = 8
"""Conversations in one sample: more of them would make its picture weigh too much in a step."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example as tokens. `images` are indices into the pictures of all, in order."""

    example: Example
    tokens: list[int]
    labels: list[int]
    """What each token has to be followed by, IGNORED where nothing is learned."""
    images: tuple[int, ...]
    shared: int
    """Tokens up to the end of the last picture."""
    trained: int
    """Labels that are not IGNORED."""
    turns: tuple[Turn[Picture], ...]
    """Of the example, those that fitted."""


@dataclass(slots=True)
class EncodedExamples:
    """Examples as tokens, and what could not become any."""

    said: list[EncodedExample] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    shortened: int = 0
    """Examples of which the last exchanges were left out, for they did not fit."""

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max((len(said.tokens) for said in self.said), default=0)


@dataclass(frozen=True)
class Samples:
    """What is trained on: trees for packing, and the pictures that they stand for."""

    trees: list[Tree]
    places: list[str]
    """Where each tree comes from, for what has to be told about it."""
    pictures: list[Picture]

    @cached_property
    def tokens(self) -> int:
        """Of all trees."""
        return sum(len(tree) for tree in self.trees)

    @cached_property
    def trained(self) -> int:
        """Tokens of all trees that are learned."""
        return sum(_trained(branch) for tree in self.trees for branch in tree.branches)

    @cached_property
    def shown(self) -> int:
        """Pictures of all trees, one as often as it is shown."""
        return sum(len(tree.images) for tree in self.trees)

    @property
    def mean_weight(self) -> float:
        """Of a tree in the loss."""
        return sum(map(_weight, self.trees)) / max(len(self.trees), 1)

    def by_length(self, length_weight: float) -> "Samples":
        """The same, an answer's loss divided by (its tokens) ** `length_weight`."""
        if not length_weight:
            return self
        trees = [
            replace(t, branches=[replace(b, weight=_shared(b, length_weight)) for b in t.branches])
            for t in self.trees
        ]
        return replace(self, trees=trees)

    def weighing(self, mean: float) -> "Samples":
        """The same, each answer's weight multiplied so that a tree weighs `mean` in the mean."""
        factor = mean / max(self.mean_weight, 1e-9)
        trees = [
            replace(t, branches=[replace(b, weight=factor * b.weight) for b in t.branches])
            for t in self.trees
        ]
        return replace(self, trees=trees)


class Reader(PictureModel, Protocol):
    """What encoding needs of a model: everything but its weights."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def vision(self) -> bool: ...


class ExampleEncoder:
    """Encodes examples for one model."""

    def __init__(self, reader: Reader, *, shares: bool = True) -> None:
        """`shares`: conversations about the same picture share it, where the base is of our kind."""
        self.reader = reader
        self.shares = shares and reader.kind == "visual_prefix"

    def encodings(self, examples: Iterable[Example], limit: int) -> EncodedExamples:
        """Each example as at most `limit` tokens.

        Where a conversation is longer, whole last exchanges are left out; where its first
        exchange alone is, the example is a problem.
        """
        found = EncodedExamples()
        index: dict[str, int] = {}
        for example in examples:
            try:
                said, whole = self._fitting(example, limit, found, index)
            except (ImageError, ModelError) as error:
                found.problems.append(Problem(example.place, str(error)))
                continue
            if said is None:
                why = f"its first question and answer alone are over {limit} tokens"
                found.problems.append(Problem(example.place, why))
            elif not said.trained:
                found.problems.append(Problem(example.place, "it has no answer to learn"))
            else:
                found.said.append(said)
                found.shortened += not whole
        return found

    def samples(
        self, encodings: EncodedExamples, limit: int, length_weight: float = 0.0
    ) -> Samples:
        """The samples of `encodings`, each of at most `limit` tokens; the weight as in `by_length`."""
        groups = _groups(encodings.said, limit, share=self.shares)
        trees = [_tree(group) for group in groups]
        places = [group[0].example.place for group in groups]
        return Samples(trees, places, encodings.pictures).by_length(length_weight)

    def _fitting(
        self, example: Example, limit: int, found: EncodedExamples, index: dict[str, int]
    ) -> tuple[EncodedExample | None, bool]:
        """(the longest beginning of whole exchanges that fits, whether it is the whole)"""
        kept: Sequence[Turn[Picture]] = example.turns
        while True:
            encoded = self.encode(kept)
            if len(encoded.input_ids) <= limit:
                break
            # What an only-last example is about stands at its end: it cannot lose that.
            shorter = None if example.only_last else _without_last(kept)
            if shorter is None:
                return None, False
            kept = shorter
        pictures = [picture for turn in kept for picture in turn.images]
        for picture in pictures:
            if picture.sha256 not in index:
                index[picture.sha256] = len(found.pictures)
                found.pictures.append(picture)
        images = tuple(index[picture.sha256] for picture in pictures)
        return _said(example, kept, encoded, images), len(kept) == len(example.turns)

    def encode(self, turns: Sequence[Turn[Picture]]) -> EncodedChat:
        """As the engine does for a question, with the answers in it.

        Raises ModelError if the template fails or the model takes no pictures, ImageError if the
        processor of a Hugging Face VLM needs a picture that cannot be decoded.
        """
        reader = self.reader
        pictures = [picture for turn in turns for picture in turn.images]
        if pictures and not reader.vision:
            raise ModelError(f"it shows a picture, and {reader.name} reads text only")
        placeholders: Sequence[Placeholders]
        if reader.kind == "hf_vlm":
            placeholders, _ = picture_inputs(reader, pictures, {}, lambda: False)
        else:
            placeholders = [self._prefix(picture) for picture in pictures]
        return encode_chat(
            reader.tokenizer,
            turns,
            placeholders=placeholders,
            image_token=getattr(reader.processor, "image_token", None),
        )

    def _prefix(self, picture: Picture) -> list[int]:
        processor: Any = self.reader.processor
        check_shape(self.reader, picture, picture.width, picture.height)
        return [processor.image_token_id] * processor.image_tokens(picture.width, picture.height)


def _without_last(turns: Sequence[Turn[Picture]]) -> Sequence[Turn[Picture]] | None:
    """The turns without their last exchange (from a user's turn on); None where none would be left."""
    starts = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if len(starts) < 2:
        return None
    kept = turns[: starts[-1]]
    return kept if any(turn.role == "assistant" for turn in kept) else None


def _said(
    example: Example, kept: Sequence[Turn[Picture]], encoded: EncodedChat, images: tuple[int, ...]
) -> EncodedExample:
    tokens, mask = encoded.input_ids, list(encoded.answer_mask)
    if example.only_last:
        last = len(mask) - 1 - mask[::-1].index(True) if True in mask else 0
        start = last
        while start and mask[start - 1]:
            start -= 1
        mask = [asked and start <= at <= last for at, asked in enumerate(mask)]
    labels = next_labels(tokens, mask)
    start, length = encoded.images[-1] if encoded.images else (0, 0)
    # Nothing may be learned inside of what is shared: an answer before the last picture is not.
    shared = start + length
    if any(label != IGNORED for label in labels[: max(shared - 1, 0)]):
        shared = 0
    trained = sum(label != IGNORED for label in labels)
    return EncodedExample(example, tokens, labels, images, shared, trained, tuple(kept))


def _groups(
    said: Sequence[EncodedExample], limit: int, *, share: bool
) -> list[list[EncodedExample]]:
    """Examples that begin alike up to their last picture, as many together as fit; all others alone."""
    alike: dict[tuple[object, ...], list[EncodedExample]] = {}
    for number, one in enumerate(said):
        begins = tuple(one.tokens[: one.shared])
        key = (one.images, begins) if share and one.shared else (number,)
        alike.setdefault(key, []).append(one)
    groups: list[list[EncodedExample]] = []
    for members in alike.values():
        group: list[EncodedExample] = []
        length = 0
        for one in members:
            own = len(one.tokens) - one.shared
            if group and (length + own > limit or len(group) == MOST_BRANCHES):
                groups.append(group)
                group = []
            length = len(one.tokens) if not group else length + own
            group.append(one)
        groups.append(group)
    return groups


def _tree(group: Sequence[EncodedExample]) -> Tree:
    first = group[0]
    trunk = first.shared if len(group) > 1 else 0
    branches = [
        Branch(
            one.tokens[trunk:],
            one.labels[trunk:],
            one.example.weight,
            one.example.kind,
        )
        for one in group
    ]
    return Tree(first.tokens[:trunk], first.images, branches)


def _weight(tree: Tree) -> float:
    return sum(branch.weight * _trained(branch) for branch in tree.branches)


def _shared(branch: Branch, length_weight: float) -> float:
    return float(branch.weight * max(_trained(branch), 1) ** -length_weight)


def _trained(branch: Branch) -> int:
    return sum(label != IGNORED for label in branch.labels)
