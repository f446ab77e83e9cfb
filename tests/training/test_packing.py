"""A packed row is each dialog alone: loss, gradients, labels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration, scale_logits
from mmchat.training import packing
from mmchat.training.losses import answer_loss, autocast
from mmchat.training.packing import IGNORED, Branch, Tree, collate, pack, tree_mask
from tests.model import parts
from tests.model.forms import assert_as_exact
from tests.training.conftest import Tiny


def _loss(tiny: Tiny, trees: list[Tree], capacity: int) -> torch.Tensor:
    batch = collate(pack(trees, capacity), capacity, tiny.processor.tokenizer.pad_token_id)
    features = tiny.features(batch.images)
    total, _ = answer_loss(tiny.model, tiny.model.model.language_model, batch, features)
    return total / batch.weights.sum()


def test_packed_equals_alone(tiny: Tiny) -> None:
    """Loss and gradients of a row with shared pictures equal the dialogs' own, one at a time."""
    trees = [tiny.samples.trees[i] for i in (0, 1, 12, 13)]
    capacity = sum(len(tree) for tree in trees) + 5
    tiny.model.zero_grad()
    packed = _loss(tiny, trees, capacity)
    packed.backward()
    gradients = {n: p.grad.clone() for n, p in tiny.model.named_parameters() if p.grad is not None}

    tiny.model.zero_grad()
    weights = [
        branch.weight * sum(label != IGNORED for label in branch.labels)
        for tree in trees
        for branch in tree.branches
    ]
    total = torch.zeros(())
    alone = [replace(tree, branches=[branch]) for tree in trees for branch in tree.branches]
    for weight, tree in zip(weights, alone, strict=True):
        total = total + _loss(tiny, [tree], len(tree)) * weight / sum(weights)
    total.backward()

    assert torch.allclose(packed, total, atol=1e-5)
    assert gradients
    for name, parameter in tiny.model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name


def test_labels_are_the_answers_and_their_end(tiny: Tiny) -> None:
    tree = tiny.samples.trees[0]
    shown = [e for e in tiny.examples if e.pictures == tiny.examples[0].pictures]
    for branch, example in zip(tree.branches, shown, strict=True):
        asked = [label for label in branch.labels if label != IGNORED]
        answers = [turn.text for turn in example.turns if turn.role == "assistant"]
        decoded = tiny.processor.tokenizer.decode(asked)
        assert decoded == "".join(f"{answer}<|end|>" for answer in answers)
        follows = zip(branch.labels, [*list(branch.tokens[1:]), IGNORED], strict=True)
        assert all(label in (IGNORED, token) for label, token in follows)


def test_pictures_have_their_tokens(tiny: Tiny) -> None:
    """As many placeholders as prefix tokens, in trunks and inside a conversation."""
    image = tiny.model.config.image_token_id
    assert len(tiny.samples.trees) == 14
    for tree in tiny.samples.trees:
        tokens = [*tree.trunk, *(t for b in tree.branches for t in b.tokens)]
        assert tokens.count(image) == len(tree.images) * tiny.model.config.image_seq_length


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.lists(st.integers(1, 6), min_size=1, max_size=4)),
        min_size=1,
        max_size=6,
    ),
    st.integers(8, 40),
)
def test_rows_hold_everything_once(shapes: list[tuple[int, list[int]]], capacity: int) -> None:
    """Nothing is lost or doubled, no row overflows, and no token sees another dialog."""
    whole = [
        Tree([1] * trunk, (), [Branch([2] * n, [2] * n, 1.0) for n in lengths])
        for trunk, lengths in shapes
    ]
    trees = [tree for tree in whole if len(tree) <= capacity]
    rows = pack(trees, capacity)
    assert sorted(len(tree) for tree in trees if len(tree)) == sorted(
        len(t) for row in rows for t in row
    )
    assert all(sum(map(len, row)) <= capacity for row in rows)
    if not rows:
        return
    batch = collate(rows, capacity, 0)
    mask = batch.attention_mask[:, 0].numpy()
    branch = batch.branch.numpy()
    both = (branch[:, :, None] >= 0) & (branch[:, None, :] >= 0)
    assert not (mask & both & (branch[:, :, None] != branch[:, None, :])).any()
    assert mask.any(-1).all()


def test_mask_by_hand() -> None:
    tree = np.array([[0, 0, 0, 1, 1, -1]], np.int32)
    branch = np.array([[-1, 0, 1, 2, 2, -1]], np.int32)
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert tree_mask(tree, branch)[0].astype(int).tolist() == expected


def test_pictures_without_their_places_are_refused(tiny: Tiny) -> None:
    tree = tiny.samples.trees[0]
    for images in ((), (0, 1)):
        with pytest.raises(ValueError, match="image tokens do not match"):
            _loss(tiny, [replace(tree, images=images)], len(tree))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_length_weight(tiny: Tiny, power: float) -> None:
    """0 weighs each token the same, 1 each conversation."""
    encoded = tiny.encoder.encode_examples(tiny.examples, 512)
    for branch in (
        tiny.encoder.build_samples(encoded, 512).weighted_by_length(power).trees[0].branches
    ):
        asked = sum(label != IGNORED for label in branch.labels)
        assert branch.weight * (asked if power else 1) == pytest.approx(1.0)


def _branch(length: int) -> Branch:
    tokens = torch.randint(6, 97, (length,)).tolist()
    return Branch(tokens, [*tokens[1:], IGNORED], 1.0)


def _gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def _assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Within 1e-4 of the largest number of each gradient: fp32 sums are taken in another order."""
    assert found and found.keys() == wanted.keys()
    for name, gradient in found.items():
        scale = max(float(wanted[name].abs().max()), 1e-3)
        assert float((gradient - wanted[name]).abs().max()) < 1e-4 * scale, name


@pytest.mark.parametrize("decoder", sorted(parts.DECODERS))
def test_packed_equals_alone_on_every_decoder(decoder: str) -> None:
    """Also what the model says with a mask of its own, longer than a window of sliding packing.

    In bfloat16 a packed row is as near to float32 as each conversation alone is.
    """
    torch.manual_seed(1)
    model = VisualPrefixForConditionalGeneration(parts.config(decoder=decoder)).eval()
    model.requires_grad_(True)
    trees = [
        Tree(_branch(70).tokens, (), [_branch(9), _branch(12)]), Tree([], (), [_branch(20)])
    ]  # fmt: skip
    capacity = sum(map(len, trees)) + 5
    decoder_model = model.model.language_model
    batch = collate(pack(trees, capacity), capacity, 0)

    def alone() -> torch.Tensor:
        total = torch.zeros(())
        for tree in trees:
            for one in tree.branches:
                tokens = torch.tensor([[*tree.trunk, *one.tokens]])
                hidden = decoder_model(input_ids=tokens, use_cache=False).last_hidden_state
                logits = scale_logits(
                    model.get_output_embeddings()(hidden[0, len(tree.trunk) :]),
                    model.config.get_text_config(),
                )
                labels = torch.tensor(one.labels)
                total = total + F.cross_entropy(logits.float(), labels, reduction="sum")
        return total

    packed_loss, _ = answer_loss(model, decoder_model, batch, None)
    alone_loss = alone()
    assert torch.allclose(packed_loss, alone_loss, rtol=1e-5)
    wanted = _gradients(model, alone_loss)
    _assert_close(_gradients(model, packed_loss), wanted)

    with autocast(torch.device("cpu"), torch.bfloat16):
        packed_loss, _ = answer_loss(model, decoder_model, batch, None)
        alone_loss = alone()
    packed, reference = _gradients(model, packed_loss), _gradients(model, alone_loss)
    assert_as_exact(_flat(packed), _flat(reference), _flat(wanted))


@pytest.mark.parametrize("decoder", sorted(parts.DECODERS))
def test_attention_by_sample_is_that_of_the_row(
    decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several rows, with padding: the same loss and gradients; most decoders do hand the places on."""
    torch.manual_seed(1)
    model = VisualPrefixForConditionalGeneration(parts.config(decoder=decoder)).eval()
    model.requires_grad_(True)

    trees = [Tree([7] * n, (), [_branch(9), _branch(n)]) for n in (5, 30, 11, 24)]
    batch = collate(pack(trees, 75), 75, 0)
    assert len(batch.input_ids) > 1 and len(batch.spans) == len(trees)

    def found() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, _ = answer_loss(model, model.model.language_model, batch, None)
        return loss, _gradients(model, loss)

    calls: list[int] = []
    by_sample = packing.sdpa_attention_forward

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(given[1].shape[2])
        return by_sample(*given, **options)

    monkeypatch.setattr(packing, "sdpa_attention_forward", counted)
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with packing.sample_attention():
        loss, gradients = found()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    if model.config.text_config._attn_implementation == "sdpa":
        assert set(calls) == set(map(len, trees))
    whole, wanted = found()
    torch.testing.assert_close(loss, whole)
    _assert_close(gradients, wanted)


def test_a_decoder_that_takes_no_more_is_given_none() -> None:
    class Narrow(torch.nn.Module):
        def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> None: ...

    batch = collate([[Tree([], (), [Branch([1], [IGNORED], 1.0)])] * 2], 4, 0)
    model = VisualPrefixForConditionalGeneration(parts.config())
    assert packing.attention_spans(batch, model.model.language_model) == {}
    with packing.sample_attention():
        assert packing.attention_spans(batch, Narrow()) == {}
        assert packing.attention_spans(batch, model.model.language_model)
