"""What is learned: the labels of every cell, or the words of every answer."""

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mmchat.training.packing import IGNORED, Batch


def normalize(pictures: Tensor) -> Tensor:
    """uint8 (pictures, side, side, 3) -> float32 (pictures, 3, side, side) in -1..1, as the processor does."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


class CellHeads(nn.Module):
    """One linear classifier a channel over the tower's features; thrown away afterwards.

    Dense labels make a tower see in minutes what answers would teach it in hours.
    """

    def __init__(self, width: int, classes: dict[str, list[str]]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(names) + 1) for name, names in classes.items()}
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """(pictures, cells, width) -> for each channel (pictures, cells, classes + 1)."""
        return [head(features) for head in self.heads.values()]

    def loss(self, features: Tensor, cells: Tensor) -> tuple[Tensor, dict[str, float]]:
        """cells: (pictures, grid, grid, channels), 0 where there is nothing.

        Empty and filled cells weigh the same in each channel, however few are
        filled. Also gives each channel's share of right filled cells.
        """
        labels = cells.flatten(1, 2).long()
        total = features.new_zeros((), dtype=torch.float32)
        right: dict[str, float] = {}
        for channel, (name, logits) in enumerate(zip(self.heads, self(features), strict=True)):
            label = labels[..., channel].flatten()
            losses = F.cross_entropy(logits.flatten(0, 1).float(), label, reduction="none")
            filled = label > 0
            for kind in (filled, ~filled):
                if kind.any():
                    total = total + losses[kind].mean()
            if filled.any():
                said = logits.detach().flatten(0, 1).argmax(-1)
                right[name] = float((said == label)[filled].float().mean())
        return total, right


def answer_loss(
    model: Any, text_model: Any, batch: Batch, pictures: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted cross entropy of the answers' tokens, and which of them are right.

    pictures: uint8 (pictures, side, side, 3). `text_model` is the model's text
    model, or a compiled form of it. Returns the loss (a scalar) and bool
    (answer tokens,), in the order of the batch's labels.

    Raises ValueError where the batch has not as many places as the pictures have tokens.
    """
    embeds = model.get_input_embeddings()(batch.input_ids)
    place = (batch.input_ids == model.config.image_token_id).unsqueeze(-1)
    places = int(place.sum())
    if places != len(pictures) * model.config.image_seq_length:
        # masked_scatter would take the first ones, and shift all that follow.
        raise ValueError(f"{places} places for the tokens of {len(pictures)} pictures")
    if len(pictures):
        tower_trains = any(p.requires_grad for p in model.model.vision_tower.parameters())
        with torch.set_grad_enabled(tower_trains and torch.is_grad_enabled()):
            features = model.encode_images(normalize(pictures))
        prefix = model.project(features).flatten(0, 1)
        embeds = embeds.masked_scatter(place, prefix.to(embeds.dtype))
    hidden = text_model(
        inputs_embeds=embeds,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    asked = batch.labels != IGNORED
    logits = model.lm_head(hidden[asked]).float()
    labels, weights = batch.labels[asked], batch.weights[asked]
    loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    return loss, logits.detach().argmax(-1) == labels


class AnswerScores:
    """The share of dialogs whose every answer token is the likeliest one.

    It equals greedy decoding's exact match: as long as each token is right, the
    next is asked after the same words.
    """

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    def add(self, batch: Batch, correct: Tensor) -> None:
        branches = batch.branch[batch.labels != IGNORED].tolist()
        by_branch: dict[int, bool] = defaultdict(lambda: True)
        for branch, hit in zip(branches, correct.tolist(), strict=True):
            by_branch[branch] &= hit
        for branch, hit in by_branch.items():
            self.asked[batch.kinds[branch]] += 1
            self.right[batch.kinds[branch]] += hit

    def shares(self) -> dict[str, float]:
        return {kind: self.right[kind] / n for kind, n in sorted(self.asked.items())}
