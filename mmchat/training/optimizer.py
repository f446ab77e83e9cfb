"""Builds optimizers: AdamW, 8-bit AdamW, or Muon for matrices with AdamW for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mmchat.errors import RecipeError
from mmchat.model.quantization import import_bitsandbytes


class Muon(torch.optim.Optimizer):
    """Momentum with updates that are orthogonalized by a Newton-Schulz iteration.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
    networks" (kellerjordan.github.io/posts/muon). The step is scaled by
    0.2 * sqrt(max(rows, columns)) as in Liu et al. 2025, "Muon is Scalable for
    LLM Training", so that it can use AdamW's learning rate. The iteration runs
    in `compute_dtype`, which should be fast on the device: torch's own Muon always uses
    bfloat16, which is some thirty times slower on CPUs that have to emulate it.

    For two-dimensional parameters only.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.compute_dtype = compute_dtype

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(buffer, group["momentum"])  # Nesterov
                update = orthogonalize(direction.to(self.compute_dtype)).to(parameter.dtype)
                scale = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """(rows, columns) -> the same shape with singular values near 1 (0.7 to 1.2)."""
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's quintic
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def build_optimizers(
    groups: Iterable[dict[str, Any]], name: str, compute_dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """The optimizers for the parameter `groups` of `Trainable.start_stage`.

    `adamw8bit` keeps its moments in 8 bits with bitsandbytes (Dettmers et al. 2022, "8-bit Optimizers
    via Block-wise Quantization"). `muon` is used for the matrices of linear layers (marked in each
    group's `linear`), with AdamW for everything else: embeddings, the head, positions. Raises
    RecipeError if 8-bit AdamW does not work on this machine.
    """
    if name == "adamw8bit":
        try:
            adamw8bit = import_bitsandbytes().optim.AdamW8bit
            return [adamw8bit([_only(g, g["params"]) for g in groups], betas=(0.9, 0.999))]
        except (ImportError, OSError, AttributeError, NotImplementedError, RuntimeError) as error:
            raise RecipeError(
                f"The optimizer adamw8bit does not work on this machine ({error}): use adamw."
            ) from error
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in groups:
        split: dict[bool, list[Tensor]] = {True: [], False: []}
        for parameter, linear in zip(group["params"], group["linear"], strict=True):
            split[name == "muon" and linear].append(parameter)
        if split[True]:
            matrices.append(_only(group, split[True]))
        if split[False]:
            others.append(_only(group, split[False]))
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, matrices[0]["lr"], compute_dtype=compute_dtype))
    if others:
        optimizers.append(torch.optim.AdamW(others, betas=(0.9, 0.999)))
    return optimizers


def _only(group: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """The group in torch's format, with these parameters only."""
    rest = {key: value for key, value in group.items() if key not in ("names", "linear", "part")}
    return {**rest, "params": parameters}
