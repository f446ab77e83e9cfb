"""The history for code that runs in an event loop: every call runs in a thread.

Another program may hold the file for seconds, and a window must not stand still meanwhile.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Concatenate, Literal, ParamSpec, TypeVar

from mmchat.history import (
    Answer,
    Conversation,
    History,
    Hit,
    Message,
    Origin,
    Rating,
    StoredImage,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class AsyncAnswer:
    """`mmchat.history.Answer` with methods that do not block."""

    def __init__(self, answer: Answer) -> None:
        self.id = answer.id
        self.message = answer.begun
        """The message as it was stored, still empty."""
        self._answer = answer

    async def append(self, text: str) -> None:
        await asyncio.to_thread(self._answer.append, text)

    async def finish(
        self, state: Literal["complete", "length", "stopped"], origin: Origin
    ) -> Message:
        return await asyncio.to_thread(self._answer.finish, state, origin)

    async def fail(self, error: str, origin: Origin) -> Message:
        return await asyncio.to_thread(self._answer.fail, error, origin)


class AsyncHistory:
    """`mmchat.history.History` with methods that do not block; they raise the same errors."""

    def __init__(self, history: History) -> None:
        self.blocking = history
        """The history itself, for code that runs in a thread of its own."""

    async def run(
        self,
        function: Callable[Concatenate[History, _P], _T],
        *arguments: _P.args,
        **named: _P.kwargs,
    ) -> _T:
        """Calls `function(history, ...)` in a thread: several reads or writes at once."""
        return await asyncio.to_thread(function, self.blocking, *arguments, **named)

    async def close(self) -> None:
        await asyncio.to_thread(self.blocking.close)

    # Conversations

    async def conversations(self, limit: int) -> list[Conversation]:
        return await asyncio.to_thread(self.blocking.conversations, limit=limit)

    async def conversation(self, conversation_id: int) -> Conversation:
        return await asyncio.to_thread(self.blocking.conversation, conversation_id)

    async def latest(self) -> Conversation | None:
        return await asyncio.to_thread(self.blocking.latest)

    async def rename(self, conversation_id: int, title: str) -> Conversation:
        return await asyncio.to_thread(self.blocking.rename, conversation_id, title)

    async def set_system(self, conversation_id: int, text: str) -> Conversation:
        return await asyncio.to_thread(self.blocking.set_system, conversation_id, text)

    async def set_head(self, conversation_id: int, message_id: int) -> Conversation:
        return await asyncio.to_thread(self.blocking.set_head, conversation_id, message_id)

    async def set_tags(self, conversation_id: int, names: Iterable[str]) -> Conversation:
        return await asyncio.to_thread(self.blocking.set_tags, conversation_id, names)

    async def delete(self, conversation_id: int) -> None:
        await asyncio.to_thread(self.blocking.delete, conversation_id)

    async def search(self, query: str, limit: int) -> list[Hit]:
        return await asyncio.to_thread(self.blocking.search, query, limit)

    # Messages

    async def message(self, message_id: int) -> Message:
        return await asyncio.to_thread(self.blocking.message, message_id)

    async def branch(self, conversation_id: int) -> list[Message]:
        return await asyncio.to_thread(self.blocking.branch, conversation_id)

    async def siblings(self, message_id: int) -> list[Message]:
        return await asyncio.to_thread(self.blocking.siblings, message_id)

    async def rate(self, message_id: int, rating: Rating | None) -> Message:
        return await asyncio.to_thread(self.blocking.rate, message_id, rating)

    async def correct(self, message_id: int, text: str) -> Message:
        return await asyncio.to_thread(self.blocking.correct, message_id, text)

    async def say(
        self,
        conversation_id: int | None,
        text: str,
        *,
        images: Sequence[tuple[StoredImage, bytes]],
        parent_id: int | None,
        origin: Origin,
        system: str,
    ) -> tuple[Message, AsyncAnswer]:
        message, answer = await asyncio.to_thread(
            self.blocking.say,
            conversation_id,
            text,
            images=images,
            parent_id=parent_id,
            origin=origin,
            system=system,
        )
        return message, AsyncAnswer(answer)

    async def begin_answer(
        self, conversation_id: int, *, parent_id: int, origin: Origin
    ) -> AsyncAnswer:
        answer = await asyncio.to_thread(
            self.blocking.begin_answer, conversation_id, parent_id=parent_id, origin=origin
        )
        return AsyncAnswer(answer)
