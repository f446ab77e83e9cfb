"""How good a model that is being trained is on samples that it does not learn from."""

from accelerate import Accelerator

from mmchat.training.examples import Samples
from mmchat.training.feeding import Rows
from mmchat.training.loop import together
from mmchat.training.objectives import AnswerScores, PackedLoss, StockLoss


def judged(
    judge: PackedLoss | StockLoss,
    rows: Rows,
    samples: Samples,
    accelerator: Accelerator,
    *,
    at_once: int,
) -> tuple[float, float]:
    """(the mean loss by weight, the share of conversations answered right)

    `at_once` samples are packed together, and computed a row at a time.
    """
    scores = AnswerScores()
    total = weight = 0.0
    for start in range(0, len(samples.trees), at_once):
        trees = [(tree, samples.pictures) for tree in samples.trees[start : start + at_once]]
        for row in rows(trees):
            batch, features = together([row], accelerator.device)
            loss, right = judge.judged(batch, features)
            total += float(loss)
            weight += float(batch.weights.sum())
            scores.add(batch, right.cpu())
    asked = sum(scores.asked.values())
    return total / max(weight, 1e-9), sum(scores.right.values()) / max(asked, 1)
