"""Encodes examples as the engine does, with labels on the answers only, and groups them into trees.

Labels are shifted: `labels[i]` is the token that should follow token i. Examples about the same picture
share it (`packing`): the picture is in the trunk, and each conversation about it is a branch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from mmchat.data.types import Example, Picture, Problem
from mmchat.errors import ImageError, ModelError
from mmchat.prompt.chat_encoding import EncodedChat, Placeholders, encode_chat
from mmchat.prompt.pixel_values import PictureModel, check_shape, picture_inputs
from mmchat.training.packing import IGNORED, Branch, Tree, next_labels
from mmchat.turns import Turn

MAX_BRANCHES = 8
"""Conversations per sample; with more, one picture would have too much weight in a step."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example as tokens. `images` are indices into `EncodedExamples.pictures`, in order."""

    example: Example
    tokens: list[int]
    labels: list[int]
    """The token that should follow each token; IGNORED where no loss is computed."""
    images: tuple[int, ...]
    shared: int
    """Tokens up to the end of the last picture, which other examples can share."""
    label_count: int
    """Labels that are not IGNORED."""
    turns: tuple[Turn[Picture], ...]
    """The turns that fit into the limit."""


@dataclass(slots=True)
class EncodedExamples:
    """Encoded examples, and the problems of those that cannot be trained on."""

    examples: list[EncodedExample] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    truncated: int = 0
    """Examples whose last exchanges were dropped, because they did not fit."""

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max((len(example.tokens) for example in self.examples), default=0)


@dataclass(frozen=True)
class Samples:
    """Training samples: trees for packing, and their pictures."""

    trees: list[Tree]
    places: list[str]
    """Where each tree comes from, for messages."""
    pictures: list[Picture]

    @cached_property
    def token_count(self) -> int:
        return sum(len(tree) for tree in self.trees)

    @cached_property
    def label_count(self) -> int:
        """Labels that are not IGNORED, in all trees."""
        return sum(_label_count(branch) for tree in self.trees for branch in tree.branches)

    @cached_property
    def picture_count(self) -> int:
        """Pictures in all trees; repeated ones count every time."""
        return sum(len(tree.images) for tree in self.trees)

    @property
    def mean_weight(self) -> float:
        """The mean weight of a tree in the loss."""
        return sum(map(_weight, self.trees)) / max(len(self.trees), 1)

    def first(self, count: int) -> "Samples":
        """The first `count` samples."""
        return Samples(self.trees[:count], self.places[:count], self.pictures)

    def weighted_by_length(self, length_weight: float) -> "Samples":
        """Samples in which each answer's loss is divided by (its tokens) ** `length_weight`."""
        if not length_weight:
            return self
        return self._reweighted(
            lambda b: float(b.weight * max(_label_count(b), 1) ** -length_weight)
        )

    def scaled_to_mean_weight(self, mean: float) -> "Samples":
        """Samples whose weights are scaled so that the mean weight of a tree is `mean`."""
        factor = mean / max(self.mean_weight, 1e-9)
        return self._reweighted(lambda branch: factor * branch.weight)

    def _reweighted(self, weight: Callable[[Branch], float]) -> "Samples":
        trees = [
            replace(tree, branches=[replace(b, weight=weight(b)) for b in tree.branches])
            for tree in self.trees
        ]
        return replace(self, trees=trees)


class Preprocessor(PictureModel, Protocol):
    """What encoding needs from a model, which does not include its weights."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def vision(self) -> bool: ...


class ExampleEncoder:
    """Encodes examples for one model."""

    def __init__(self, preprocessor: Preprocessor, *, share_pictures: bool = True) -> None:
        """share_pictures: conversations about the same picture share it, for visual-prefix models."""
        self.preprocessor = preprocessor
        self.share_pictures = share_pictures and preprocessor.kind == "visual_prefix"

    def encode_examples(self, examples: Iterable[Example], limit: int) -> EncodedExamples:
        """Encodes each example as at most `limit` tokens.

        If a conversation is too long, its last exchanges are dropped; if even its first exchange is too
        long, the example is a problem.
        """
        encoded = EncodedExamples()
        index: dict[str, int] = {}
        for example in examples:
            try:
                one = self._encode_example(example, limit, encoded.pictures, index)
            except (ImageError, ModelError) as error:
                encoded.problems.append(Problem(example.place, str(error)))
                continue
            if one is None:
                why = f"its first question and answer alone are over {limit} tokens"
                encoded.problems.append(Problem(example.place, why))
            elif not one.label_count:
                encoded.problems.append(Problem(example.place, "it has no answer to learn"))
            else:
                encoded.examples.append(one)
                encoded.truncated += len(one.turns) < len(example.turns)
        return encoded

    def build_samples(self, encoded: EncodedExamples, limit: int) -> Samples:
        """Groups `encoded` into samples of at most `limit` tokens."""
        groups = _group(encoded.examples, limit, share_pictures=self.share_pictures)
        trees = [_build_tree(group) for group in groups]
        places = [group[0].example.place for group in groups]
        return Samples(trees, places, encoded.pictures)

    def _encode_example(
        self, example: Example, limit: int, pictures: list[Picture], index: dict[str, int]
    ) -> EncodedExample | None:
        """As many whole exchanges as fit; None if not even the first does. Adds to `pictures` and `index`."""
        kept: Sequence[Turn[Picture]] = example.turns
        while True:
            encoded = self.encode(kept)
            if len(encoded.input_ids) <= limit:
                break
            # The answer to learn in an only-last example is at its end.
            shorter = None if example.only_last else _without_last(kept)
            if shorter is None:
                return None
            kept = shorter
        own_pictures = [picture for turn in kept for picture in turn.images]
        for picture in own_pictures:
            if picture.sha256 not in index:
                index[picture.sha256] = len(pictures)
                pictures.append(picture)
        images = tuple(index[picture.sha256] for picture in own_pictures)
        return _label(example, kept, encoded, images)

    def encode(self, turns: Sequence[Turn[Picture]]) -> EncodedChat:
        """Encodes a conversation, answers included, exactly as the engine does.

        Raises ModelError if the template fails or the model does not see pictures, ImageError if the
        processor of a Hugging Face VLM needs a picture that cannot be decoded.
        """
        preprocessor = self.preprocessor
        pictures = [picture for turn in turns for picture in turn.images]
        if pictures and not preprocessor.vision:
            raise ModelError(f"it has a picture, but {preprocessor.name} reads text only")
        placeholders: Sequence[Placeholders]
        if preprocessor.kind == "hf_vlm":
            placeholders, _ = picture_inputs(preprocessor, pictures, {}, lambda: False)
        else:
            placeholders = [self._image_tokens(picture) for picture in pictures]
        return encode_chat(
            preprocessor.tokenizer,
            turns,
            placeholders=placeholders,
            image_token=getattr(preprocessor.processor, "image_token", None),
        )

    def _image_tokens(self, picture: Picture) -> list[int]:
        processor: Any = self.preprocessor.processor
        check_shape(self.preprocessor, picture, picture.width, picture.height)
        return [processor.image_token_id] * processor.image_tokens(picture.width, picture.height)


def _without_last(turns: Sequence[Turn[Picture]]) -> Sequence[Turn[Picture]] | None:
    """The turns without the last exchange, which begins at a user turn; None if no answer would be left."""
    starts = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if len(starts) < 2:
        return None
    kept = turns[: starts[-1]]
    return kept if any(turn.role == "assistant" for turn in kept) else None


def _label(
    example: Example, kept: Sequence[Turn[Picture]], encoded: EncodedChat, images: tuple[int, ...]
) -> EncodedExample:
    tokens, mask = encoded.input_ids, list(encoded.answer_mask)
    if example.only_last:
        last = len(mask) - 1 - mask[::-1].index(True) if True in mask else 0
        start = last
        while start and mask[start - 1]:
            start -= 1
        mask = [answer and start <= at <= last for at, answer in enumerate(mask)]
    labels = next_labels(tokens, mask)
    start, length = encoded.images[-1] if encoded.images else (0, 0)
    # There must be no labels in what is shared, so an answer before the last picture prevents sharing.
    shared = start + length
    if any(label != IGNORED for label in labels[: max(shared - 1, 0)]):
        shared = 0
    count = sum(label != IGNORED for label in labels)
    return EncodedExample(example, tokens, labels, images, shared, count, tuple(kept))


def _group(
    examples: Sequence[EncodedExample], limit: int, *, share_pictures: bool
) -> list[list[EncodedExample]]:
    """Groups examples with the same tokens up to their last picture, within the limit; others stay alone."""
    same_start: dict[tuple[object, ...], list[EncodedExample]] = {}
    for number, one in enumerate(examples):
        start = tuple(one.tokens[: one.shared])
        key = (one.images, start) if share_pictures and one.shared else (number,)
        same_start.setdefault(key, []).append(one)
    groups: list[list[EncodedExample]] = []
    for members in same_start.values():
        group: list[EncodedExample] = []
        length = 0
        for one in members:
            own = len(one.tokens) - one.shared
            if group and (length + own > limit or len(group) == MAX_BRANCHES):
                groups.append(group)
                group = []
            length = len(one.tokens) if not group else length + own
            group.append(one)
        groups.append(group)
    return groups


def _build_tree(group: Sequence[EncodedExample]) -> Tree:
    first = group[0]
    trunk = first.shared if len(group) > 1 else 0
    branches = [
        Branch(one.tokens[trunk:], one.labels[trunk:], one.example.weight, one.example.kind)
        for one in group
    ]
    return Tree(first.tokens[:trunk], first.images, branches)


def _weight(tree: Tree) -> float:
    return sum(branch.weight * _label_count(branch) for branch in tree.branches)


def _label_count(branch: Branch) -> int:
    return sum(label != IGNORED for label in branch.labels)
