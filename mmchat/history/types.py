"""What the history returns: frozen values, never rows.

Times are seconds since the Unix epoch, sizes are bytes, durations are milliseconds. Texts are as
they were written: clean them before you show them (`mmchat.sanitize.clean`).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["user", "assistant"]
State = Literal["complete", "streaming", "stopped", "interrupted", "failed", "length"]
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
    """The last message of the branch that is shown; None in an empty conversation."""
    messages: int
    """The number of messages in all branches."""
    last_text: str
    """The beginning (200 characters) of the head's text."""
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
    """The file's name when it was attached, to be shown."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How an answer was made: enough to make it again, and how long it took."""

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
    """While it streams: what has been written so far."""
    images: tuple[StoredImage, ...]
    created: float
    state: State
    error: str
    """The sentence that was shown when it failed; empty otherwise."""
    origin: Origin | None
    sibling: int
    """Its number among its siblings, from 1 for the oldest."""
    siblings: int
    """The number of messages with the same parent, including this one."""
    rating: Rating | None = None
    """What the person thinks of an answer."""
    rated: float | None = None
    """When the rating was given."""
    corrects: int | None = None
    """The message that it replaces, if it is an answer that the person wrote."""

    @property
    def by_person(self) -> bool:
        """Whether the person wrote it: their own message, or their correction of an answer."""
        return self.role == "user" or self.corrects is not None


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """An answer that the person approved, and the conversation that led to it (training_examples.py)."""

    kind: Literal["corrected", "good"]
    when: float
    """When the person wrote it or rated it, whichever came last."""
    conversation: Conversation
    messages: tuple[Message, ...]
    """What is learned from, the answer last; not always a branch as it is shown."""

    @property
    def answer(self) -> Message:
        return self.messages[-1]

    @property
    def whole(self) -> bool:
        """Whether the answer is complete, and was not cut off by an accident."""
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
    """Where the words are in `snippet`: (start, end), as for slices."""
    created: float
