"""What became of one question."""

from dataclasses import dataclass
from typing import Any

from mmchat.evaluation.metrics import normalised_match


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question and what became of it."""

    id: str
    type: str
    question: str
    """The words of the last message."""
    wanted: str
    given: str
    right: bool
    """By the exact match of its type."""
    images: tuple[str, ...] = ()
    """As `Questions.shown` names them."""
    unanswered: str = ""
    """Why there is no answer, if so: the engine's sentence. Then it is wrong."""

    @property
    def verbatim(self) -> bool:
        """Whether the answer is the wanted text character for character, white space at the ends
        aside."""
        return not self.unanswered and self.given.strip() == self.wanted.strip()

    @property
    def same_words(self) -> bool:
        """Whether the answer has the wanted words (`normalised_match`)."""
        return not self.unanswered and normalised_match(self.given, self.wanted)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": self.type,
            "question": self.question,
            "wanted": self.wanted,
            "given": self.given,
            "right": self.right,
            "unanswered": self.unanswered,
        }
