"""Counts the tokens of examples as training encodes them; loads no weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmchat.data.types import Example
from mmchat.errors import ImageError, ModelError

MOST_COUNTED = 20_000
MOST_DECODED = 500
"""The limit for a model whose processor must decode each picture to count its tokens."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens of examples before they are shortened."""

    model: str
    context: int
    """The model's context length."""
    limit: int
    """The most tokens of a training example, unless the recipe sets another limit."""
    lengths: list[int]
    """The tokens of each example that was counted."""
    of_pictures: int
    """The tokens of all pictures in them."""
    of: int
    """The number of examples; if it exceeds that of `lengths`, an evenly spread part was counted."""
    cut: int
    """How many of the counted examples lose their last exchanges."""
    too_long: int
    """How many of the counted examples are skipped, because their first exchange is too long."""
    problems: list[tuple[str, str]]
    """(place, why) of examples that the model cannot read."""

    def quantile(self, share: float) -> int:
        ordered = sorted(self.lengths)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def histogram(self, most: int = 10) -> list[tuple[int, int, int]]:
        """(from, to, examples) by length, in bins with a round width that include both ends."""
        shortest, longest = min(self.lengths, default=0), max(self.lengths, default=0)
        width = next(
            size * 10**power
            for power in range(12)
            for size in (1, 2, 5)
            if longest // (size * 10**power) - shortest // (size * 10**power) < most
        )
        first = shortest // width
        bins = [0] * (longest // width - first + 1)
        for length in self.lengths:
            bins[length // width - first] += 1
        return [
            ((first + at) * width, (first + at + 1) * width - 1, count)
            for at, count in enumerate(bins)
        ]


def count_tokens(
    name: str, examples: Sequence[Example], progress: Callable[[float], None] = lambda done: None
) -> TokenCount:
    """Counts the tokens of `examples` for the model `name`; calls `progress` with the share done.

    Raises ModelError if the model cannot be used.
    """
    from mmchat.model.load_plan import plan_load
    from mmchat.model.loading import context_length, processor_of
    from mmchat.training.encode import ExampleEncoder
    from mmchat.training.prepare import DEFAULT_MAX_TOKENS, BasePreprocessor

    plan = plan_load(name)
    processor, tokenizer = processor_of(plan)
    encoder = ExampleEncoder(
        BasePreprocessor(plan.name, plan.kind, processor, tokenizer, plan.kind != "text")
    )
    context = context_length(plan.config, tokenizer)
    limit = min(context, DEFAULT_MAX_TOKENS)
    most = MOST_DECODED if plan.kind == "hf_vlm" else MOST_COUNTED
    some = spread(examples, most)
    lengths: list[int] = []
    long: list[Example] = []
    problems: list[tuple[str, str]] = []
    of_pictures = 0
    for number, example in enumerate(some):
        progress(number / len(some))
        try:
            encoded = encoder.encode(example.turns)
        except (ImageError, ModelError) as error:
            problems.append((example.place, str(error)))
            continue
        lengths.append(len(encoded.input_ids))
        of_pictures += sum(length for _, length in encoded.images)
        if lengths[-1] > limit:
            long.append(example)
    fitted = encoder.encode_examples(long, limit)
    return TokenCount(
        model=name,
        context=context,
        limit=limit,
        lengths=lengths,
        of_pictures=of_pictures,
        of=len(examples),
        cut=fitted.truncated,
        too_long=len(long) - len(fitted.examples),
        problems=problems,
    )


def spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most `most` of `examples`, evenly spread over them."""
    if len(examples) <= most:
        return list(examples)
    return [examples[at * len(examples) // most] for at in range(most)]
