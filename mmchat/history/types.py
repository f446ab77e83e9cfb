"""The types that the history returns.

Times are seconds since the Unix epoch, sizes are bytes, durations are milliseconds. Texts are
unchanged: clean them before showing them (`mmchat.sanitize.clean`).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["user", "assistant"]
MessageState = Literal["complete", "streaming", "stopped", "interrupted", "failed", "length"]
Rating = Literal["good", "bad"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, without its messages."""

    id: int
    title: str
    created: float
    updated: float
    system: str
    """The system prompt; empty if there is none."""
    head_id: int | None
    """The last message of the current branch; None in an empty conversation."""
    messages: int
    """The number of messages in all branches."""
    last_text: str
    """The first 200 characters of the head's text."""
    tags: tuple[str, ...] = ()
    """In alphabetical order."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture in the history; `History.image_data` returns its bytes."""

    sha256: str
    mime: str
    width: int
    height: int
    size: int
    name: str
    """The file name when it was attached, for display."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How an answer was generated: enough to reproduce it, and the timings."""

    model: str
    adapter: str = ""
    adapter_hash: str = ""
    quantization: str = ""
    device: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Temperature, seed and so on; anything that JSON can hold."""
    prompt_tokens: int | None = None
    image_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    image_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the tree; once its state is final, only its rating can change."""

    id: int
    conversation_id: int
    parent_id: int | None
    role: Role
    text: str
    """While it streams: the text so far."""
    images: tuple[StoredImage, ...]
    created: float
    state: MessageState
    error: str
    """The error message if it failed; empty otherwise."""
    origin: Origin | None
    sibling: int
    """Its number among its siblings, from 1 for the oldest."""
    siblings: int
    """The number of messages with the same parent, including this one."""
    rating: Rating | None = None
    """The user's rating of an answer."""
    rated: float | None = None
    """When the rating was given."""
    corrects: int | None = None
    """The message that it corrects, if the user wrote this answer."""

    @property
    def by_person(self) -> bool:
        """Whether the user wrote it: their own message, or a correction of an answer."""
        return self.role == "user" or self.corrects is not None


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """An answer that the user approved, with its context (training_examples.py)."""

    kind: Literal["corrected", "good"]
    when: float
    """When the user wrote or rated it, whichever is later."""
    conversation: Conversation
    messages: tuple[Message, ...]
    """The context and, last, the answer; not always an existing branch."""

    @property
    def answer(self) -> Message:
        return self.messages[-1]

    @property
    def is_complete(self) -> bool:
        """Whether the answer is complete, or was stopped on purpose."""
        return self.answer.state in ("complete", "stopped") and bool(self.answer.text.strip())


@dataclass(frozen=True, slots=True)
class Hit:
    """One message that a search found."""

    message_id: int
    conversation_id: int
    title: str
    role: Role
    snippet: str
    """One line around the first match, without control characters."""
    marks: tuple[tuple[int, int], ...]
    """The matches in `snippet` as (start, end), like slices."""
    created: float
