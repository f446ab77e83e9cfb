"""How good a model that is being trained is on samples that it does not learn from."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mmchat.data.types import Example
from mmchat.model.loaded_model import LoadedModel
from mmchat.prompt.model_inputs import build_prompt
from mmchat.training.dataloader import Rows
from mmchat.training.encode import Samples
from mmchat.training.losses import AnswerScores, HfVlmLoss, PackedLoss
from mmchat.training.run_folder import SampleAnswer
from mmchat.training.train_step import RowInput, collate_rows

NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Of the held-out samples: the mean loss by weight, and the shares of conversations answered right."""

    loss: float
    right: float
    right_by_type: dict[str, float]


def validate(
    loss_module: PackedLoss | HfVlmLoss, rows: Iterable[RowInput], device: torch.device
) -> ValidationResult:
    """Looks at `rows` one at a time; the model is in eval mode, without gradients."""
    scores = AnswerScores()
    total = weight = 0.0
    for row in rows:
        batch, features = collate_rows([row], device)
        loss, right = loss_module.score(batch, features)
        total += float(loss)
        weight += float(batch.weights.sum())
        scores.add(batch, right.cpu())
    asked = sum(scores.asked.values())
    share = sum(scores.right.values()) / max(asked, 1)
    return ValidationResult(total / max(weight, 1e-9), share, scores.shares())


def validation_rows(rows: Rows, samples: Samples, at_once: int) -> Iterable[RowInput]:
    """The rows of `samples`, of which `at_once` are packed together."""
    for start in range(0, len(samples.trees), at_once):
        trees = samples.trees[start : start + at_once]
        yield from rows([(tree, samples.pictures) for tree in trees])


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def sample_answer(loaded: LoadedModel, example: Example) -> SampleAnswer:
    """What the model answers now, greedily, to the last question of `example`."""
    last = max(n for n, turn in enumerate(example.turns) if turn.role == "assistant")
    asked = example.turns[:last]
    prompt = build_prompt(loaded, asked, NEW_TOKENS)
    ids = loaded.model.generate(
        input_ids=prompt.input_ids,
        attention_mask=torch.ones_like(prompt.input_ids),
        **prompt.model_inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=sorted(loaded.eos_token_ids),
        pad_token_id=loaded.tokenizer.pad_token_id or 0,
    )
    given = loaded.tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    return SampleAnswer(asked[-1].text if asked else "", example.turns[last].text, given.strip())
