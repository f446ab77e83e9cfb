"""An answer in the making, and what happens to it: what the asker tells the screen."""

from dataclasses import dataclass
from typing import Literal

from mmchat.client.protocol import EngineStatus
from mmchat.history import Answer, Message, Origin
from mmchat.settings import Settings

Phase = Literal["queued", "waiting", "loading", "reading", "writing"]
Ending = tuple[Literal["complete", "length", "stopped", "failed"], str]
"""How an answer ended, and for "failed" the sentence that says why."""


@dataclass(slots=True)
class Live:
    """An answer that is not finished: waiting for its turn, being written, or not kept yet."""

    answer: Answer
    conversation_id: int
    parent_id: int
    origin: Origin
    settings: Settings | None = None
    """What it is asked with; None is whatever holds when its turn comes."""
    phase: Phase = "queued"
    place: int = 0
    """In the engine's line, while `phase` is waiting."""
    text: str = ""
    stopped: bool = False
    ending: Ending | None = None
    """Set when it is over; it lives on until the history has it."""
    problem: str = ""
    """Why the history does not have its end yet."""

    @property
    def id(self) -> int:
        return self.answer.id


@dataclass(frozen=True, slots=True)
class Changed:
    """An answer went into another phase, was stopped, or has a problem."""

    live: Live


@dataclass(frozen=True, slots=True)
class Grew:
    """An answer has more text, in the history already."""

    live: Live
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer is over; `message` is what the history holds of it.

    `message` is None where another window deleted the conversation; `problem`
    then says so.
    """

    live: Live
    message: Message | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LoadGoes:
    """The model is being loaded: `fraction` from 0 to 1."""

    model: str
    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """Nothing loads any more: `problem` says why the model is not there, empty for success."""

    status: EngineStatus | None
    problem: str = ""


News = Changed | Grew | Ended | LoadGoes | LoadEnded
