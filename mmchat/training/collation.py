"""From samples to batches: template, pictures' places, answer-only labels.

Encoding goes through `mmchat.model.prompt`, the same as for answering. A label
stands one place before the token it asks for, so a branch's first answer token
is asked of the last token before it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmchat.errors import DataError, MmchatError
from mmchat.model.prompt import encode_chat
from mmchat.training.dataset import PreparedData, Sample
from mmchat.training.order import Order
from mmchat.training.packing import (
    IGNORED,
    Batch,
    Branch,
    Row,
    Tree,
    collate,
    next_labels,
    pack,
    trim,
)


class Collator:
    """Turns samples into packed rows for one tokenizer and prefix length."""

    def __init__(
        self, tokenizer: Any, image_token: str, prefix_tokens: int, length_weight: float
    ) -> None:
        self.tokenizer = tokenizer
        self.pad_id: int = tokenizer.pad_token_id
        self.prefix = [tokenizer.convert_tokens_to_ids(image_token)] * prefix_tokens
        self.length_weight = length_weight

    def tree(self, sample: Sample, order: np.random.Generator | None = None) -> Tree:
        """Encodes a sample; with `order` its dialogs are shuffled.

        Raises DataError where its dialogs do not begin alike.
        """
        dialogs = list(sample.dialogs)
        if order is not None:
            dialogs = [dialogs[i] for i in order.permutation(len(dialogs))]
        encoded = [
            encode_chat(
                self.tokenizer, dialog.turns, image_tokens=[self.prefix] * len(sample.images)
            )
            for dialog in dialogs
        ]
        trunk = 0
        if len(encoded) > 1 and sample.images:
            start, length = encoded[0].images[-1]
            trunk = start + length
            if any(e.input_ids[:trunk] != encoded[0].input_ids[:trunk] for e in encoded):
                raise DataError(
                    f"{sample.place}: its dialogs do not begin alike up to the last picture: make "
                    "a sample of each."
                )
        branches: list[Branch] = []
        for dialog, whole in zip(dialogs, encoded, strict=True):
            tokens, mask = whole.input_ids, whole.answer_mask
            following = next_labels(tokens, mask)
            asked = sum(mask[trunk + 1 :])
            branches.append(
                Branch(
                    tokens[trunk:],
                    following[trunk:],
                    max(asked, 1) ** -self.length_weight,
                    dialog.kind,
                )
            )
        return Tree(encoded[0].input_ids[:trunk], sample.images, branches)

    def batch(self, rows: list[Row], capacity: int) -> Batch:
        """Rows -> a batch of exactly these rows."""
        return collate(rows, capacity, self.pad_id)


class AnswerSteps(Dataset[Batch]):
    """Step number -> batch. The same seed gives the same batch at each step, so a
    resumed run sees what an uninterrupted one would have."""

    def __init__(
        self, data: PreparedData, collator: Collator, *, rows: int, row_tokens: int, seed: int
    ) -> None:
        self.data = data
        self.collator = collator
        self.rows = rows
        self.row_tokens = row_tokens
        self.seed = seed
        self._order = Order(len(data), seed, salt=(1,))

    def __getitem__(self, step: int) -> Batch:
        """Samples are drawn without replacement within each pass over the data.

        Raises DataError for a line that is no sample, or where no dialog of the step fits.
        """
        rng = np.random.default_rng((self.seed, step))
        at = step * self.rows
        # Small trees share rows: a few samples more than rows fill them.
        trees = (self._tree(position, rng) for position in range(at, at + self.rows))
        batch = self.collator.batch(pack(trees, self.row_tokens), self.row_tokens)
        if not (batch.labels != IGNORED).any():
            raise DataError(
                f"{self.data.folder}: none of the dialogs of step {step} fits into row_tokens = "
                f"{self.row_tokens} and asks for an answer: raise row_tokens, or shorten them."
            )
        return batch

    def _tree(self, position: int, rng: np.random.Generator) -> Tree:
        sample = self.data[self._order[position]]
        return trim(self.collator.tree(sample, rng), self.row_tokens)

    def __len__(self) -> int:
        return 2**31  # endless: the stage's steps bound it


class CellSteps(Dataset[tuple[Tensor, Tensor]]):
    """Step number -> (pictures uint8 (rows, side, side, 3), cells uint8 (rows, grid, grid, channels))."""

    def __init__(self, data: PreparedData, *, rows: int, seed: int) -> None:
        """Raises DataError where there are fewer pictures than `rows`, or no labels for them."""
        if rows > len(data.images):
            raise DataError(
                f"{data.folder} holds {len(data.images)} pictures, and a step takes rows = {rows} "
                "different ones: lower rows."
            )
        if len(data.cells) != len(data.images):
            raise DataError(
                f"{data.folder} holds labels of {len(data.cells)} pictures in cells.npy, and "
                f"{len(data.images)} pictures: draw or prepare it again."
            )
        self.data = data
        self.rows = rows
        self.seed = seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        chosen = np.sort(rng.choice(len(self.data.images), self.rows, replace=False))
        return (
            torch.from_numpy(self.data.images[chosen]),
            torch.from_numpy(self.data.cells[chosen]),
        )

    def __len__(self) -> int:
        return 2**31


class ToldSteps(Dataset[Any]):
    """`steps`, whose MmchatError is a value: it comes through a DataLoader as it was raised.

    A DataLoader raises its worker's errors anew, with the worker's traceback as their sentence.
    """

    def __init__(self, steps: AnswerSteps | CellSteps) -> None:
        self.steps = steps

    def __getitem__(self, step: int) -> Any:
        try:
            return self.steps[step]
        except MmchatError as error:
            return error

    def __len__(self) -> int:
        return len(self.steps)
