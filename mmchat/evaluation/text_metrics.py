"""BLEU and ROUGE of free-text answers.

The metrics with intervals cover the questions whose reference has at least four words, because BLEU
uses 4-grams. ROUGE's words are runs of letters and digits of any script; in English they equal
rouge-score's. Scripts without spaces between words are counted by character, in BLEU too if most of
the text is in such a script.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from mmchat.evaluation.graders import GradedAnswer
from mmchat.evaluation.statistics import (
    Estimate,
    Floats,
    bootstrap_mean,
    percentiles,
    resampled_sums,
)

MIN_WORDS = 4
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
_BLEU_ORDER = 4
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and ideographs
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class TextScores:
    """BLEU and ROUGE-L of texts of any length, without intervals."""

    bleu: float
    """Corpus BLEU by sacrebleu, from 0 to 100."""
    bleu_signature: str
    """sacrebleu's record of how it was computed."""
    rouge_l: float
    """The mean F-measure of ROUGE-L, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """BLEU from 0 to 100 and ROUGE (the mean F-measure) from 0 to 1, with intervals."""

    n: int
    bleu: Estimate
    bleu_signature: str
    """sacrebleu's record of how it was computed."""
    rouge: dict[str, Estimate]
    """By `ROUGE_TYPES`."""
    bleu_counts: Floats
    """(n, 10), per question: answer length, reference length, matching n-grams, n-grams."""
    rouge_scores: Floats
    """(n, 3), per question: the F-measures by `ROUGE_TYPES`."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "bleu": self.bleu.to_dict(),
            "bleu_signature": self.bleu_signature,
            **{kind: self.rouge[kind].to_dict() for kind in ROUGE_TYPES},
        }


class RougeTokenizer:
    """A tokenizer for rouge-score that supports every script. The default only finds Latin letters, so
    two equal sentences in another script would have nothing in common."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def compute_text_metrics(answers: Sequence[GradedAnswer]) -> TextMetrics | None:
    """None if no reference has `MIN_WORDS` words."""
    long = [a for a in answers if len(_WORD.findall(a.reference)) >= MIN_WORDS]
    if not long:
        return None
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    # A single sentence needs the effective order, which changes its score but not its counts.
    tokenize = _bleu_tokenizer([a.reference for a in long])
    sentence = BLEU(effective_order=True, tokenize=tokenize)
    rouge = RougeScorer(list(ROUGE_TYPES), tokenizer=RougeTokenizer())
    counts, f_measures = [], []
    for one in long:
        bleu_score = sentence.sentence_score(one.prediction, [one.reference])
        counts.append(
            [bleu_score.sys_len, bleu_score.ref_len, *bleu_score.counts, *bleu_score.totals]
        )
        rouge_score = rouge.score(one.reference, one.prediction)
        f_measures.append([rouge_score[kind].fmeasure for kind in ROUGE_TYPES])
    bleu_counts, rouge_scores = np.array(counts, np.float64), np.array(f_measures, np.float64)
    corpus = BLEU(tokenize=tokenize)
    score = corpus.corpus_score([a.prediction for a in long], [[a.reference for a in long]]).score
    return TextMetrics(
        len(long),
        Estimate(float(score), percentiles(bleu_of_counts(resampled_sums(bleu_counts)))),
        str(corpus.get_signature()),
        {kind: bootstrap_mean(rouge_scores[:, i]) for i, kind in enumerate(ROUGE_TYPES)},
        bleu_counts,
        rouge_scores,
    )


def score_texts(predictions: Sequence[str], references: Sequence[str]) -> TextScores:
    """The scores of at least one text."""
    from sacrebleu.metrics import BLEU

    corpus = BLEU(tokenize=_bleu_tokenizer(references))
    score = corpus.corpus_score(list(predictions), [list(references)]).score
    total = sum(map(rouge_l, predictions, references))
    return TextScores(float(score), str(corpus.get_signature()), total / len(predictions))


def rouge_l(prediction: str, reference: str) -> float:
    """The F-measure of ROUGE-L, from 0 to 1."""
    return float(_rouge_l_scorer().score(reference, prediction)["rougeL"].fmeasure)


@cache
def _rouge_l_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=RougeTokenizer())


def _bleu_tokenizer(texts: Sequence[str]) -> str:
    """The name of sacrebleu's tokenizer: by character if most words of `texts` are single characters of
    a script without spaces, otherwise the default."""
    words = [word for text in texts for word in _WORD.findall(text)]
    single = sum(re.match(f"[{_UNSPACED}]", word) is not None for word in words)
    return "char" if 2 * single > len(words) else "13a"


def bleu_of_counts(sums: Floats) -> Floats:
    """(…, 10) sums of `TextMetrics.bleu_counts` -> (…) corpus BLEU, from 0 to 100.

    It is smoothed like sacrebleu's default (NIST): an order without a matching n-gram counts as half a
    match, the next such order as a quarter, and so on.
    """
    length, reference_length = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + _BLEU_ORDER], sums[..., 2 + _BLEU_ORDER :]
    halvings = np.cumsum(matches == 0, axis=-1)
    smoothed = np.where(matches == 0, 0.5**halvings, matches)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(smoothed / totals).mean(-1)
        brevity = np.where(length < reference_length, np.exp(1 - reference_length / length), 1.0)
        score = 100 * brevity * np.exp(log_precision)
    # 0 if nothing matches, or if no answer is long enough for one of the orders.
    zero = (matches.sum(-1) == 0) | (totals == 0).any(-1) | (length == 0)
    return np.where(zero, 0.0, score)
