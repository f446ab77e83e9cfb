"""From conversations to what is trained: nothing cut in half, every picture with its tokens."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.data.types import Example, Picture
from mmchat.model.processor import VisualPrefixProcessor
from mmchat.training.encode import ExampleEncoder
from mmchat.training.packing import IGNORED, pack
from mmchat.training.prepare import BasePreprocessor
from mmchat.turns import Turn
from tests.training.tuned import picture, write_base

PICTURES = [picture(number) for number in range(6)]
_PIECES = [*"abc .,?\n", "é", "猫", "🙂", "<image>", "<|end|>", "<|user|>"]
_words = st.lists(st.sampled_from(_PIECES), max_size=30).map("".join)
_answer = _words.filter(lambda text: bool(text.strip()))
_shown = st.lists(st.sampled_from(PICTURES), max_size=3)


@st.composite
def conversations(draw: Any) -> Example:
    """Several exchanges, with and without a system prompt, pictures anywhere before a question."""
    turns = []
    if draw(st.booleans()):
        turns.append(Turn("system", (draw(_words),)))
    for _ in range(draw(st.integers(1, 4))):
        parts: list[str | Picture] = [draw(_words)]
        for shown in draw(_shown):
            parts += [shown, draw(_words)]
        turns += [Turn("user", tuple(parts)), Turn("assistant", (draw(_answer),))]
    return Example(tuple(turns), "", "drawn", only_last=draw(st.booleans()))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ExampleEncoder:
    base = write_base(tmp_path_factory.mktemp("base"))
    processor: Any = VisualPrefixProcessor.from_pretrained(base)
    processor.tokenizer.chat_template = processor.chat_template
    return ExampleEncoder(
        BasePreprocessor("tiny", "visual_prefix", processor, processor.tokenizer, True)
    )


def _check(encoder: ExampleEncoder, examples: list[Example], limit: int) -> None:
    processor: Any = encoder.preprocessor.processor
    found = encoder.encode_examples(examples, limit)
    assert len(found.examples) + len(found.problems) == len(examples)
    for said in found.examples:
        assert len(said.tokens) == len(said.labels) <= limit
        places = said.tokens.count(processor.image_token_id)
        assert places == len(said.images) * processor.prefix_tokens
        # Whole exchanges from the first: what is left ends with an answer, and each has its question.
        whole = encoder.encode(said.example.turns).input_ids
        if len(whole) <= limit:
            assert said.tokens == whole
        else:
            assert not said.example.only_last
            assert any(
                said.tokens == encoder.encode(said.example.turns[:end]).input_ids
                for end in range(2, len(said.example.turns))
                if said.example.turns[end - 1].role == "assistant"
            )
        for token, label in zip(said.tokens[1:], said.labels, strict=False):
            assert label in (IGNORED, token)
        assert said.label_count > 0
    samples = encoder.build_samples(found, limit).weighted_by_length(0.5)
    rows = pack(samples.trees, limit)
    assert sum(len(tree) for row in rows for tree in row) == samples.token_count
    for tree in samples.trees:
        tokens = [*tree.trunk, *(token for branch in tree.branches for token in branch.tokens)]
        shared = len(tree.images) * processor.prefix_tokens
        assert tokens.count(processor.image_token_id) == shared
    trained = sum(
        label != IGNORED for tree in samples.trees for b in tree.branches for label in b.labels
    )
    assert trained == sum(said.label_count for said in found.examples)


@settings(max_examples=60, deadline=None)
@given(st.lists(conversations(), min_size=1, max_size=8), st.sampled_from([40, 80, 160, 500]))
def test_random_conversations(encoder: ExampleEncoder, examples: list[Example], limit: int) -> None:
    _check(encoder, examples, limit)


@pytest.mark.slow
@settings(max_examples=1250, deadline=None)
@given(st.lists(conversations(), min_size=8, max_size=8), st.sampled_from([60, 120, 500]))
def test_ten_thousand_conversations(
    encoder: ExampleEncoder, examples: list[Example], limit: int
) -> None:
    _check(encoder, examples, limit)


def _example(*answers: str, only_last: bool = False) -> Example:
    turns: tuple[Turn, ...] = ()
    for number, answer in enumerate(answers):
        shown = (PICTURES[0], "what?") if number == 0 else ("and?",)
        turns += (Turn("user", shown), Turn("assistant", (answer,)))
    return Example(turns, "", "made", only_last=only_last)


def test_only_the_last_answer_is_learned_where_the_others_were_not_approved(
    encoder: ExampleEncoder,
) -> None:
    (said,) = encoder.encode_examples([_example("one.", "two.", only_last=True)], 500).examples
    asked = [label for label in said.labels if label != IGNORED]
    assert encoder.preprocessor.tokenizer.decode(asked) == "two.<|end|>"


def test_conversations_about_one_picture_share_it(encoder: ExampleEncoder) -> None:
    examples = [_example("one."), _example("two."), _example("three.")]
    found = encoder.encode_examples(examples, 500)
    samples = encoder.build_samples(found, 500).weighted_by_length(0.5)
    (tree,) = samples.trees
    assert len(tree.branches) == 3 and len(tree.images) == 1
    assert samples.token_count < sum(len(said.tokens) for said in found.examples)


def test_what_does_not_fit_is_told_with_its_place(encoder: ExampleEncoder) -> None:
    found = encoder.encode_examples([_example("long " * 200), _example("short.")], 100)
    assert len(found.examples) == 1
    (problem,) = found.problems
    assert problem.place == "made" and "over 100 tokens" in problem.why


def test_a_model_without_eyes_says_so(encoder: ExampleEncoder, tmp_path: Path) -> None:
    reader = encoder.preprocessor
    blind = BasePreprocessor("blind", "text", None, reader.tokenizer, False)
    found = ExampleEncoder(blind).encode_examples([_example("one.")], 500)
    assert "blind reads text only" in found.problems[0].why
