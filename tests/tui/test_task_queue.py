"""Tasks run one after the other, in the order in which they were enqueued."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mmchat.errors import HistoryError
from mmchat.tui.task_queue import TaskQueue


@pytest.fixture
def errors() -> list[str]:
    return []


@pytest.fixture
async def tasks(errors: list[str]) -> AsyncIterator[TaskQueue]:
    tasks = TaskQueue(errors.append)
    worker = asyncio.create_task(tasks.run())
    yield tasks
    worker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker


def adding(done: list[str], name: str) -> Callable[[], Awaitable[None]]:
    async def task() -> None:
        await asyncio.sleep(0)
        done.append(name)

    return task


async def nothing() -> None:
    pass


async def test_the_tasks_of_a_command_run_before_what_was_typed_after_it(tasks: TaskQueue) -> None:
    done: list[str] = []

    async def command() -> None:
        with tasks.enqueue_first():
            tasks.enqueue(adding(done, "1"))
            tasks.enqueue(adding(done, "2"))

    tasks.enqueue(command)
    tasks.enqueue(adding(done, "3"))
    tasks.enqueue(adding(done, "4"))
    await tasks.call(nothing)
    assert done == ["1", "2", "3", "4"]


async def test_an_error_is_reported_and_the_next_task_runs(
    tasks: TaskQueue, errors: list[str]
) -> None:
    done: list[str] = []

    async def fails() -> None:
        raise HistoryError("The disk is full.")

    tasks.enqueue(fails)
    tasks.enqueue(adding(done, "1"))
    with pytest.raises(HistoryError, match="The disk is full"):
        await tasks.call(fails)  # raised here, and not reported again
    assert done == ["1"]
    assert errors == ["The disk is full."]
