"""Muon's step is orthogonal, and each parameter has the optimizer that suits it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.errors import RecipeError
from mmchat.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizers,
    save_checkpoint,
)
from mmchat.training.optimizer import (
    Muon,
    build_optimizers,
    orthogonalize,
)


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


def test_state_survives_a_checkpoint() -> None:
    def trained(steps: int, saved: dict[str, torch.Tensor] | None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)
        optimizers = _optimizers(list(layer.parameters()), "muon")
        for step in range(steps):
            if step == 2 and saved is not None:
                saved |= {k: v.clone() for k, v in optimizer_tensors(optimizers).items()}
                optimizers = _optimizers(list(layer.parameters()), "muon")
                restore_optimizers(optimizers, saved)
            layer(torch.ones(1, 4) * (step + 1)).pow(2).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return layer.weight.detach()

    assert torch.equal(trained(5, None), trained(5, {}))


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "muon"])
def test_every_optimizer_goes_on_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    """To the bit, through the file of a checkpoint; bitsandbytes' own 8-bit one too, which runs on a CPU."""

    def trained(stop: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((80, 64), (64,), (3, 4, 5))]
        optimizers = _optimizers(weights, name)
        for step in range(5):
            if step == stop:
                save_checkpoint(tmp_path, step, optimizer_tensors(optimizers), {})
                optimizers = _optimizers(weights, name)
                saved = load_checkpoint(tmp_path)
                assert saved is not None and saved[0]
                restore_optimizers(optimizers, saved[0])
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            for optimizer in optimizers:
                optimizer.step()
        return [weight.detach() for weight in weights]

    for wanted, found in zip(trained(-1), trained(3), strict=True):
        assert torch.equal(wanted, found)


def _optimizers(weights: list[torch.nn.Parameter], name: str) -> list[torch.optim.Optimizer]:
    linear = [weight.ndim == 2 for weight in weights]
    group = {"params": weights, "linear": linear, "lr": 1e-2, "weight_decay": 0.01}
    return build_optimizers([group], name)


def test_the_state_of_another_parameter_is_refused() -> None:
    def made(*shape: int) -> list[torch.optim.Optimizer]:
        weight = torch.nn.Parameter(torch.randn(shape))
        weight.grad = torch.randn_like(weight)
        optimizers = _optimizers([weight], "adamw8bit")
        optimizers[0].step()
        return optimizers

    with pytest.raises(ValueError, match="another parameter"):
        restore_optimizers(made(64, 80), optimizer_tensors(made(80, 64)))


def test_muon_takes_the_matrices_of_linear_layers_one_by_one() -> None:
    """One 3-D parameter in a group, or an embedding, sends only itself to AdamW."""
    linear, tokens, experts = (
        torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 4), (9, 4), (2, 4, 4))
    )
    group = {"params": [linear, tokens, experts], "linear": [True, False, False], "lr": 0.1}
    muon, adamw = build_optimizers([group], "muon")
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    assert [p is linear for p in muon.param_groups[0]["params"]] == [True]
    assert {id(p) for p in adamw.param_groups[0]["params"]} == {id(tokens), id(experts)}


def test_an_8_bit_optimizer_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("no bitsandbytes")

    monkeypatch.setattr("mmchat.training.optimizer.import_bitsandbytes", missing)
    with pytest.raises(RecipeError, match="use adamw"):
        _optimizers([torch.nn.Parameter(torch.ones(2, 2))], "adamw8bit")
