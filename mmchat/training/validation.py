"""Validates a model during training: loss, accuracy and sample answers on held-out samples."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mmchat.data.types import Example
from mmchat.model.loaded_model import LoadedModel
from mmchat.prompt.model_inputs import build_prompt
from mmchat.training.dataloader import RowPacker
from mmchat.training.encode import Samples
from mmchat.training.losses import AnswerAccuracy, HfVlmLoss, PackedLoss
from mmchat.training.run_folder import SampleAnswer
from mmchat.training.train_step import RowInput, collate_rows

MAX_NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """The weighted mean loss, and the share of correctly answered conversations."""

    loss: float
    accuracy: float
    accuracy_by_type: dict[str, float]


def validate(
    loss_module: PackedLoss | HfVlmLoss, rows: Iterable[RowInput], device: torch.device
) -> ValidationResult:
    """Scores `rows` one at a time. The model must be in eval mode, with gradients disabled."""
    accuracy = AnswerAccuracy()
    total = weight = 0.0
    for row in rows:
        batch, features = collate_rows([row], device)
        loss, correct = loss_module.score(batch, features)
        total += float(loss)
        weight += float(batch.weights.sum())
        accuracy.add(batch, correct.cpu())
    return ValidationResult(total / max(weight, 1e-9), accuracy.overall, accuracy.by_type())


def validation_rows(packer: RowPacker, samples: Samples, batch: int) -> Iterable[RowInput]:
    """The packed rows of `samples`, `batch` of them at a time."""
    for start in range(0, len(samples.trees), batch):
        trees = samples.trees[start : start + batch]
        yield from packer([(tree, samples.pictures) for tree in trees])


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def sample_answer(loaded: LoadedModel, example: Example) -> SampleAnswer:
    """The model's current greedy answer to the last question of `example`."""
    last = max(n for n, turn in enumerate(example.turns) if turn.role == "assistant")
    turns = example.turns[:last]
    prompt = build_prompt(loaded, turns, MAX_NEW_TOKENS)
    ids = loaded.model.generate(
        input_ids=prompt.input_ids,
        attention_mask=torch.ones_like(prompt.input_ids),
        **prompt.model_inputs,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        eos_token_id=sorted(loaded.eos_token_ids),
        pad_token_id=loaded.tokenizer.pad_token_id or 0,
    )
    answer = loaded.tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    return SampleAnswer(turns[-1].text if turns else "", example.turns[last].text, answer.strip())
