"""Muon's step is orthogonal, and each parameter has the optimizer that suits it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.training.checkpoint import optimizer_tensors, restore_optimizers
from mmchat.training.optimizer import Muon, build_optimizers, orthogonalize, schedule
from tests.training.conftest import Tiny


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**16))
def test_orthogonalize(rows: int, columns: int, seed: int) -> None:
    """Singular values come near 1, singular vectors stay."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    n = min(rows, columns)
    values = torch.linspace(0.3, 1.0, n)
    matrix = left[:, :n] @ torch.diag(values) @ right[:, :n].T
    result = left[:, :n].T @ orthogonalize(matrix) @ right[:, :n]
    assert torch.allclose(result, torch.diag(result.diagonal()), atol=1e-3)
    assert result.diagonal().min() > 0.6 and result.diagonal().max() < 1.3


def test_parameters_are_shared_out_once(tiny: Tiny) -> None:
    tiny.model.requires_grad_(True)
    vocabulary = [tiny.model.get_input_embeddings(), tiny.model.lm_head]
    modules = [tiny.model.model, tiny.model.lm_head]
    muon, adamw = build_optimizers(modules, 1e-3, 0.1, vocabulary)
    assert isinstance(muon, Muon)
    matrices = {id(p) for g in muon.param_groups for p in g["params"]}
    others = {id(p) for g in adamw.param_groups for p in g["params"]}
    assert not matrices & others
    assert matrices | others == {id(p) for p in tiny.model.parameters()}
    embedding = tiny.model.get_input_embeddings().weight
    assert id(embedding) in others
    assert id(tiny.model.model.language_model.layers[0].mlp.up_proj.weight) in matrices


def test_state_survives_a_checkpoint() -> None:
    def trained(steps: int, saved: dict[str, torch.Tensor] | None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)
        optimizers = build_optimizers([layer], 0.1, 0.1)
        for step in range(steps):
            if step == 2 and saved is not None:
                saved |= {k: v.clone() for k, v in optimizer_tensors(optimizers).items()}
                optimizers = build_optimizers([layer], 0.1, 0.1)
                restore_optimizers(optimizers, saved)
            layer(torch.ones(1, 4) * (step + 1)).pow(2).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return layer.weight.detach()

    assert torch.equal(trained(5, None), trained(5, {}))


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_schedule(steps: int) -> None:
    factors = [schedule(step, steps, 0.1, 0.3) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1.0)
    if steps == 100:
        assert factors[9] == factors[69] == 1.0
        assert factors[-1] < factors[80] < 1
