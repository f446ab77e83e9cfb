"""How near free answers are to those wanted, by words: BLEU and ROUGE, with intervals.

Questions count whose wanted answer has at least four words: BLEU looks at four in a row.
ROUGE's words are runs of letters and digits of any script; of English they are those that
rouge-score takes. What is written without spaces between its words counts by the character, in
BLEU too where most of it is so.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from mmchat.evaluation.outcome import Outcome
from mmchat.evaluation.statistics import Estimate, Floats, mean, percentiles, resampled_sums

WORDS = 4
KINDS = ("rouge1", "rouge2", "rougeL")
_ORDERS = 4  # of BLEU's n-grams
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and ideographs
_WORD = re.compile(f"[{_SPACELESS}]|[^\\W_{_SPACELESS}]+")


@dataclass(frozen=True, slots=True)
class Wording:
    """How near a few texts are to those wanted, however short, without intervals."""

    bleu: float
    """Corpus BLEU by sacrebleu, from 0 to 100."""
    bleu_signature: str
    """sacrebleu's account of how it was computed."""
    rouge_l: float
    """The mean F-measure of ROUGE-L, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Texts:
    """BLEU from 0 to 100, ROUGE (the mean F-measure) from 0 to 1."""

    n: int
    bleu: Estimate
    bleu_signature: str
    """sacrebleu's account of how it was computed."""
    rouge: dict[str, Estimate]
    """By `KINDS`."""
    bleu_rows: Floats
    """(n, 10), BLEU's counts of each question: length, wanted length, n-grams right, n-grams."""
    rouge_rows: Floats
    """(n, 3), the F-measures of each question by `KINDS`."""
    ids: tuple[str, ...]
    """Of the questions, in the order of the rows."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "bleu": self.bleu.to_dict(),
            "bleu_signature": self.bleu_signature,
            **{kind: self.rouge[kind].to_dict() for kind in KINDS},
        }


def _bleu_tokens(texts: Sequence[str]) -> str:
    """sacrebleu's tokenizer for `texts`: characters where most of the words are single characters
    of a script without spaces, else its own default."""
    words = [word for text in texts for word in _WORD.findall(text)]
    single = sum(re.match(f"[{_SPACELESS}]", word) is not None for word in words)
    return "char" if 2 * single > len(words) else "13a"


class Words:
    """rouge-score's tokenizer for any script: its own takes Latin letters alone, and finds
    nothing alike in two equal sentences of another."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def find_texts(outcomes: Sequence[Outcome]) -> Texts | None:
    """None where no wanted answer has as many words."""
    asked = [outcome for outcome in outcomes if len(_WORD.findall(outcome.wanted)) >= WORDS]
    if not asked:
        return None
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    # Whole sentences of the corpus score; a sentence alone needs the effective order, which
    # changes its score and not its counts.
    tokens = _bleu_tokens([outcome.wanted for outcome in asked])
    alone, whole = BLEU(effective_order=True, tokenize=tokens), BLEU(tokenize=tokens)
    rouge = RougeScorer(list(KINDS), tokenizer=Words())
    bleu_rows, rouge_rows = [], []
    for outcome in asked:
        one = alone.sentence_score(outcome.given, [outcome.wanted])
        bleu_rows.append([one.sys_len, one.ref_len, *one.counts, *one.totals])
        scores = rouge.score(outcome.wanted, outcome.given)
        rouge_rows.append([scores[kind].fmeasure for kind in KINDS])
    counts, measures = np.array(bleu_rows, np.float64), np.array(rouge_rows, np.float64)
    score = whole.corpus_score([o.given for o in asked], [[o.wanted for o in asked]]).score
    return Texts(
        len(asked),
        Estimate(float(score), percentiles(bleu(resampled_sums(counts)))),
        str(whole.get_signature()),
        {kind: mean(measures[:, place]) for place, kind in enumerate(KINDS)},
        counts,
        measures,
        tuple(outcome.id for outcome in asked),
    )


def wording(answers: Sequence[str], wanted: Sequence[str]) -> Wording:
    """Of at least one answer."""
    from sacrebleu.metrics import BLEU

    whole = BLEU(tokenize=_bleu_tokens(wanted))
    score = whole.corpus_score(list(answers), [list(wanted)]).score
    total = sum(map(rouge_l, answers, wanted))
    return Wording(float(score), str(whole.get_signature()), total / len(answers))


def rouge_l(answer: str, wanted: str) -> float:
    """The F-measure of ROUGE-L of one answer, from 0 to 1."""
    return float(_rouge_l().score(wanted, answer)["rougeL"].fmeasure)


@cache
def _rouge_l() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())


def bleu(sums: Floats) -> Floats:
    """(…, 10) sums of counts -> (…) corpus BLEU, 0 to 100, smoothed as sacrebleu does by
    default (NIST's way: an order without a right n-gram counts as half of one, then a quarter …).
    """
    length, wanted = sums[..., 0], sums[..., 1]
    right, there = sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
    halvings = np.cumsum(right == 0, axis=-1)
    smoothed = np.where(right == 0, 0.5**halvings, right)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / there).mean(-1)
        brevity = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        found = 100 * brevity * np.exp(logs)
    # Where nothing is right, or no answer is as long as an order, it is 0.
    none = (right.sum(-1) == 0) | (there == 0).any(-1) | (length == 0)
    return np.where(none, 0.0, found)
