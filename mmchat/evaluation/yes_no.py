"""Whether a model says yes to what is not there, as POPE measures it (Li et al. 2023).

Questions count whose wanted answer is yes or no. Two parsers read the answers: POPE's own, for
which everything that does not deny is a yes, and a strict one, which may read nothing at all.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmchat.evaluation.metrics import Share, normalise
from mmchat.evaluation.outcome import Outcome
from mmchat.evaluation.statistics import Estimate, Floats, of_counts

Said = Literal["yes", "no", ""]

_STRICT = re.compile(r"(yes|no)(?:\s*[,.;:!?–—-]|$)")
_DENIALS = {"No", "not", "no"}


def said_by_pope(answer: str) -> Said:
    """POPE's own parser: no where the first sentence, which ends at a full stop, has a word No,
    no or not; else yes. Words are what stands between spaces, commas left out."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if _DENIALS & set(words) else "yes"


def said_strictly(answer: str) -> Said:
    """The word with which the answer begins and which stands alone; "" where that is neither."""
    found = _STRICT.match(normalise(answer))
    if found is None:
        return ""
    return "yes" if found[1] == "yes" else "no"


@dataclass(frozen=True, slots=True)
class Scoring:
    """The figures by one parser, yes being the positive answer.

    What could not be asked or parsed is wrong, no yes, and missed where a yes was wanted.
    """

    accuracy: Share
    precision: Share
    recall: Share
    f1: Estimate
    yes_ratio: Share

    def to_dict(self) -> dict[str, Any]:
        shares = {
            "accuracy": self.accuracy,
            "precision": self.precision,
            "recall": self.recall,
            "yes_ratio": self.yes_ratio,
        }
        return {
            **{n: {"value": s.share, "interval": list(s.interval)} for n, s in shares.items()},
            "f1": self.f1.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class YesNo:
    """Both scorings of the same answers."""

    n: int
    wanted_yes: int
    pope: Scoring
    strict: Scoring
    unparsed: Share
    """What the strict parser could not read, and what could not be asked."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "wanted_yes": self.wanted_yes,
            "pope": self.pope.to_dict(),
            "strict": self.strict.to_dict(),
            "unparsed": self.unparsed.share,
            "unparsed_interval": list(self.unparsed.interval),
        }


def find_yes_no(outcomes: Sequence[Outcome]) -> YesNo | None:
    """None where no question wants a yes or a no."""
    asked = [(said_strictly(one.wanted), one) for one in outcomes]
    asked = [(wanted, one) for wanted, one in asked if wanted]
    if not asked:
        return None

    def said_by(parser: Callable[[str], Said]) -> list[tuple[Said, Said]]:
        # An empty answer is one; where there is none, nothing was said.
        return [(wanted, "" if one.unanswered else parser(one.given)) for wanted, one in asked]

    strict = said_by(said_strictly)
    return YesNo(
        len(asked),
        sum(wanted == "yes" for wanted, _ in asked),
        _scored(said_by(said_by_pope)),
        _scored(strict),
        Share(sum(not said for _, said in strict), len(strict)),
    )


def _scored(pairs: Sequence[tuple[Said, Said]]) -> Scoring:
    """pairs: (wanted, said)"""
    hit = sum(pair == ("yes", "yes") for pair in pairs)
    wanted = sum(wanted == "yes" for wanted, _ in pairs)
    said = sum(said == "yes" for _, said in pairs)
    # Of the questions: yes rightly said, yes missed, yes wrongly said, all others.
    cells = np.array([hit, wanted - hit, said - hit, len(pairs) - wanted - said + hit], np.int64)
    return Scoring(
        Share(sum(wanted == given for wanted, given in pairs), len(pairs)),
        Share(hit, said),
        Share(hit, wanted),
        of_counts(cells, _f1),
        Share(said, len(pairs)),
    )


def _f1(cells: Floats) -> Floats:
    part = 2 * cells[:, 0]
    whole = part + cells[:, 1] + cells[:, 2]
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
