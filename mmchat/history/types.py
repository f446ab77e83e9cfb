"""What the history gives back: frozen values, never rows.

Times are seconds since the Unix epoch, sizes are bytes, durations milliseconds.
Texts are as they were said: whoever shows one cleans it first
(`mmchat.sanitize.clean`).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["user", "assistant"]
State = Literal["complete", "streaming", "stopped", "interrupted", "failed", "length"]
Rating = Literal["good", "bad"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of the list of conversations."""

    id: int
    title: str
    created: float
    updated: float
    system: str
    """The system prompt; empty where there is none."""
    head_id: int | None
    """The last message of the branch that is shown; None while it is empty."""
    messages: int
    """How many messages it holds, over all branches."""
    last_text: str
    """The beginning (200 characters) of the head's text."""
    tags: tuple[str, ...] = ()
    """By the alphabet."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture in the history; `History.image_data` gives its bytes."""

    sha256: str
    mime: str
    width: int
    height: int
    size: int
    name: str
    """The file's name when it was attached, for people to read."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How an answer was made: enough to make it again, and what it cost."""

    model: str
    adapter: str = ""
    adapter_hash: str = ""
    quantization: str = ""
    device: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Temperature, seed and the like; whatever JSON can hold."""
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
    """One message of the tree; once its state is final, nothing changes it but its rating."""

    id: int
    conversation_id: int
    parent_id: int | None
    role: Role
    text: str
    """While it streams: what has been written so far."""
    images: tuple[StoredImage, ...]
    created: float
    state: State
    error: str
    """The sentence that was shown when it failed; otherwise empty."""
    origin: Origin | None
    sibling: int
    """Which of its siblings it is, from 1, the oldest first."""
    siblings: int
    """How many messages answer the same parent, this one among them."""
    rating: Rating | None = None
    """What the person thinks of an answer."""
    rated: float | None = None
    """When they said so."""
    corrects: int | None = None
    """Of an answer that the person wrote: the message in whose place it stands."""

    @property
    def by_person(self) -> bool:
        """Whether the person wrote it: a message of theirs, or their correction of an answer."""
        return self.role == "user" or self.corrects is not None


@dataclass(frozen=True, slots=True)
class Lesson:
    """An answer that the person approved, and the conversation that led to it (lessons.py)."""

    kind: Literal["corrected", "good"]
    when: float
    """When the person wrote it or rated it, whichever came last."""
    conversation: Conversation
    messages: tuple[Message, ...]
    """What is learned from, the answer last: not always a branch as it is shown."""

    @property
    def answer(self) -> Message:
        return self.messages[-1]

    @property
    def whole(self) -> bool:
        """Whether the answer says what it was to say, and was not cut by an accident."""
        return self.answer.state in ("complete", "stopped") and bool(self.answer.text.strip())


@dataclass(frozen=True, slots=True)
class Hit:
    """One message that a search found."""

    message_id: int
    conversation_id: int
    title: str
    role: Role
    snippet: str
    """One line around the first place found, free of control characters."""
    marks: tuple[tuple[int, int], ...]
    """Where the words stand in `snippet`: (start, end), as slices."""
    created: float
