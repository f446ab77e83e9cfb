"""A pending answer, and the events that the conversation service reports about it and the model."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mmchat.client.protocol import EngineStatus
from mmchat.errors import MmchatError
from mmchat.history import Message, Origin
from mmchat.settings import Settings
from mmchat.turns import ImagePart, Turn

Phase = Literal["queued", "waiting", "loading", "reading", "writing"]
FinalState = Literal["complete", "length", "stopped", "failed"]


class AnswerRecord(Protocol):
    """Where an answer is written while it is generated. Methods raise HistoryError."""

    @property
    def id(self) -> int:
        """The id of the answer's message."""

    async def append(self, text: str) -> None: ...

    async def finish(
        self, state: Literal["complete", "length", "stopped"], origin: Origin
    ) -> Message | None: ...

    async def fail(self, error: str, origin: Origin) -> Message | None: ...


@dataclass(slots=True, eq=False)
class PendingAnswer:
    """An answer that is not in the history yet as a whole: queued, being generated, or not saved."""

    record: AnswerRecord
    prompt: Callable[[], Awaitable[Sequence[Turn[ImagePart]]]]
    """Returns the turns that the engine is asked with; called when the answer's turn comes."""
    conversation_id: int
    question_id: int
    """The message that is answered."""
    origin: Origin
    settings: Settings | None = None
    """The settings to ask with; None means those that are in effect when its turn comes."""
    phase: Phase = "queued"
    queue_position: int = 0
    """In the engine's queue, while `phase` is "waiting"."""
    text: str = ""
    stop_requested: bool = False
    final_state: FinalState | None = None
    """Set when generation is over; the answer stays pending until the history has it."""
    error: MmchatError | None = None
    """Why it failed."""
    error_text: str = ""
    """The sentence about `error` for the person."""
    save_error: str = ""
    """Why the end of the answer could not be saved yet."""
    save_task: asyncio.Task[None] | None = None
    """Saves the end of the answer."""

    @property
    def id(self) -> int:
        return self.record.id


@dataclass(frozen=True, slots=True)
class AnswerChanged:
    """An answer entered another phase, is being stopped, or could not be saved."""

    answer: PendingAnswer


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """The next piece of an answer; the history has it already."""

    answer: PendingAnswer
    text: str


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """An answer is over.

    `message` is what the history has; None if it is not saved, or if another window deleted the
    conversation, which `error` then says.
    """

    answer: PendingAnswer
    message: Message | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A model is being loaded; `fraction` is from 0 to 1."""

    model: str
    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class LoadFinished:
    """No model is being loaded any more; `error` says why it failed, empty if it succeeded."""

    status: EngineStatus | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ModelSelected:
    """Later messages are answered by another model or adapter."""

    model: str
    adapter: str


@dataclass(frozen=True, slots=True)
class ConversationsChanged:
    """The open conversation or the list of conversations may be different now."""


ChatEvent = (
    AnswerChanged
    | AnswerDelta
    | AnswerFinished
    | LoadProgress
    | LoadFinished
    | ModelSelected
    | ConversationsChanged
)
EventHandler = Callable[[ChatEvent], object]
