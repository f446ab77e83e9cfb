"""A queue of tasks that run one after the other. No widgets here."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from mmchat.errors import HistoryError

Task = Callable[[], Awaitable[object]]
_T = TypeVar("_T")


class TaskQueue:
    """Runs tasks in the order in which they were enqueued.

    What reads or writes the history, or mounts and removes messages, is a task. So one at a time
    changes the messages on the screen, and none of it is awaited where keys are handled: a file
    that another program holds stops neither the keys nor the screen.
    """

    def __init__(self, on_error: Callable[[str], None]) -> None:
        """on_error: called with the sentence of a HistoryError that a task raised."""
        self._on_error = on_error
        self._waiting: deque[Task] = deque()
        self._first: list[Task] | None = None
        self._added = asyncio.Event()

    def enqueue(self, task: Task) -> None:
        """Run a task after those that were enqueued before."""
        if self._first is not None:
            self._first.append(task)
        else:
            self._waiting.append(task)
        self._added.set()

    @contextlib.contextmanager
    def enqueue_first(self) -> Iterator[None]:
        """Tasks that are enqueued in this block run before those that wait already."""
        self._first = []
        try:
            yield
        finally:
            self._waiting.extendleft(reversed(self._first))
            self._first = None

    async def call(self, task: Callable[[], Awaitable[_T]]) -> _T:
        """Enqueue a task and wait for its result; raises what it raises."""
        result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                value = await task()
            except HistoryError as error:
                if not result.cancelled():
                    result.set_exception(error)
            else:
                if not result.cancelled():
                    result.set_result(value)

        self.enqueue(run)
        return await result

    async def run(self) -> None:
        """Run the tasks until cancelled."""
        while True:
            while not self._waiting:
                self._added.clear()
                await self._added.wait()
            task = self._waiting.popleft()
            try:
                await task()
            except HistoryError as error:
                self._on_error(str(error))
