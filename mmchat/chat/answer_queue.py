"""The queue between those who ask and the engine.

One question is asked at a time, in the order in which they were sent. A question that waits for
the model to load has its answer in the history already, so a crash of the app leaves the answer
there as interrupted. Events are emitted in the order in which things happen, on the event loop
that runs `AnswerQueue.run`.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mmchat.chat.events import (
    AnswerChanged,
    AnswerDelta,
    AnswerFinished,
    EventHandler,
    FinalState,
    LoadFinished,
    LoadProgress,
    ModelSelected,
    PendingAnswer,
    Phase,
)
from mmchat.chat.origins import finished_origin, sampling_options, started_origin
from mmchat.client.protocol import Delta, Done, Event, FinishReason, Loading, Started, Waiting
from mmchat.display.messages import with_log
from mmchat.errors import EngineError, HistoryError, MmchatError, TooLongError
from mmchat.history import Message, MissingError
from mmchat.history.turns import TOO_LONG
from mmchat.settings import Settings, paths

if TYPE_CHECKING:
    from mmchat.client import EngineClient

_T = TypeVar("_T")
_FINAL_STATES: dict[FinishReason, FinalState] = {
    "stop": "complete",
    "length": "length",
    "cancelled": "stopped",
}


@dataclass(frozen=True, slots=True)
class _Load:
    """A job of the queue: load the model of `settings`."""

    settings: Settings
    silent: bool
    """Do not report the start: the model is loaded already, so it takes only a moment."""


class AnswerQueue:
    """Asks the engine one question after the other and stores the answers."""

    def __init__(self, settings: Settings, emit: EventHandler) -> None:
        self.settings = settings
        """What the next question is asked with; `select` changes model and adapter."""
        self.pending: dict[int, PendingAnswer] = {}
        """The answers that the history does not have as a whole, by message id, oldest first."""
        self._emit = emit
        self._jobs: deque[PendingAnswer | _Load] = deque()
        self._job_added = asyncio.Event()
        self._client: EngineClient | None = None
        self._client_settings = settings
        self._task: asyncio.Task[Any] | None = None
        self._current: PendingAnswer | None = None
        self._closing = False

    @property
    def remote(self) -> bool:
        """Whether a server on another machine answers, which mmchat cannot tell what to load."""
        return bool(self.settings.engine.url)

    def select(self, model: str | None = None, adapter: str | None = None) -> None:
        """Ask with another model or adapter from now on, and begin to load it."""
        selected = self.settings.model
        if model is not None:
            # Another base has other adapters.
            selected = msgspec.structs.replace(selected, name=model, adapter="")
        if adapter is not None:
            selected = msgspec.structs.replace(selected, adapter=adapter)
        self.settings = msgspec.structs.replace(self.settings, model=selected)
        self._emit(ModelSelected(selected.name, selected.adapter))
        self.load()

    def load(self, silent: bool = False) -> None:
        """Load the model before the first question needs it."""
        if not self.remote:
            self._add(_Load(self.settings, silent))

    def submit(self, answer: PendingAnswer) -> None:
        """Add a question to the queue."""
        self.pending[answer.id] = answer
        self._add(answer)

    def stop(self, answer: PendingAnswer) -> None:
        """End an answer and keep its text; one that still waits leaves the queue."""
        if answer.stop_requested or answer.final_state is not None:
            return
        answer.stop_requested = True
        self._emit(AnswerChanged(answer))
        if answer is self._current:
            if self._task is not None:
                _cancel(self._task)
        elif answer in self._jobs:
            self._jobs.remove(answer)
            self._end(answer, "stopped")

    def stop_conversation(self, conversation_id: int) -> None:
        """Stop all answers of a conversation that was deleted."""
        for answer in list(self.pending.values()):
            if answer.conversation_id == conversation_id:
                self.stop(answer)

    def retry_saving(self) -> None:
        """Try again to save the ends of answers that could not be saved."""
        for answer in self.pending.values():
            if answer.save_error:
                self._start_saving(answer)

    async def run(self) -> None:
        """Work through the queue until cancelled."""
        while not self._closing:
            if not self._jobs:
                self._job_added.clear()
                await self._job_added.wait()
                continue
            job = self._jobs.popleft()
            if isinstance(job, PendingAnswer):
                await self._answer(job)
            else:
                await self._stoppable(self._load(job))

    async def close(self) -> None:
        """Stop the current answer, save every text, and close the connection to the engine."""
        self._closing = True
        if self._task is not None:
            _cancel(self._task)
            await asyncio.wait({self._task})
        for answer in list(self.pending.values()):
            await self._end(answer, answer.final_state or "stopped")
            if answer.save_error:
                break  # the next one would wait as long, in vain
        if self._client is not None:
            await self._client.aclose()

    # One job

    def _add(self, job: PendingAnswer | _Load) -> None:
        self._jobs.append(job)
        self._job_added.set()

    async def _stoppable(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """The result of `work`; None if `work` was cancelled, rather than the task that waits."""
        self._task = task = asyncio.create_task(work)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # the task that waits was cancelled: cancel `work` with it
            _cancel(task)
            await asyncio.wait({task})
            raise
        finally:
            self._task = None
        return None if task.cancelled() else task.result()

    async def _connected(self, settings: Settings) -> "EngineClient":
        if self._client is None or settings is not self._client_settings:
            client_class = await asyncio.to_thread(_client_class)
            if self._client is not None:
                client, self._client = self._client, None
                await client.aclose()
            self._client, self._client_settings = client_class(settings), settings
        return self._client

    async def _load(self, job: _Load) -> None:
        if any(isinstance(later, _Load) for later in self._jobs):
            return  # another model was selected since
        try:
            if not job.silent:
                self._emit(LoadProgress(job.settings.model.name, "starting the engine", 0.0))
            client = await self._connected(job.settings)
            async with aclosing(client.load()) as progress:
                async for step in progress:
                    self._emit(LoadProgress(step.model, step.stage, step.fraction))
            self._emit(LoadFinished(await client.status()))
        except MmchatError as error:
            self._emit(LoadFinished(None, self._error_text(error)))

    async def _answer(self, answer: PendingAnswer) -> None:
        self._current = answer
        state: FinalState | None = None
        try:
            state = await self._stoppable(self._generate(answer))
        except Exception as error:
            # A bug: the person keeps the text, and the app shows the traceback.
            state, answer.error_text = "failed", f"Internal error in mmchat: {error!r}."
            raise
        finally:
            self._current = None
            await self._end(answer, state or "stopped")

    async def _generate(self, answer: PendingAnswer) -> FinalState:
        settings = answer.settings or self.settings
        done: Done | None = None
        try:
            self._set_phase(answer, "waiting")
            turns = await answer.prompt()
            client = await self._connected(settings)
            async with aclosing(client.chat(turns, sampling_options(settings))) as events:
                async for event in events:
                    if isinstance(event, Done):
                        done = event
                    else:
                        await self._handle(answer, event)
            if done is None:
                raise EngineError("The engine ended the answer before it was complete: ask again.")
        except MmchatError as error:
            if isinstance(error, TooLongError):
                answer.origin.parameters[TOO_LONG] = True
            answer.error, answer.error_text = error, self._error_text(error)
            return "failed"
        answer.origin = finished_origin(answer.origin, done)
        return _FINAL_STATES[done.finish_reason]

    async def _handle(self, answer: PendingAnswer, event: Event) -> None:
        match event:
            case Waiting(place=place):
                answer.queue_position = place
                self._set_phase(answer, "waiting")
            case Loading(model=model, stage=stage, fraction=fraction):
                self._set_phase(answer, "loading")
                self._emit(LoadProgress(model, stage, fraction))
            case Started():
                if answer.phase == "loading":
                    self._emit(LoadFinished(None))
                answer.origin = started_origin(answer.origin, event)
                self._set_phase(answer, "reading")
            case Delta(text=text):
                await answer.record.append(text)
                answer.text += text
                if answer.phase != "writing":
                    self._set_phase(answer, "writing")
                self._emit(AnswerDelta(answer, text))

    def _set_phase(self, answer: PendingAnswer, phase: Phase) -> None:
        answer.phase = phase
        self._emit(AnswerChanged(answer))

    # The end of an answer

    def _end(self, answer: PendingAnswer, state: FinalState) -> "asyncio.Future[None]":
        """Save how an answer ended; it stays pending until that is done."""
        if answer.final_state is None and answer.phase == "loading":
            # Nothing else would report that the load is over.
            self._emit(LoadFinished(None, answer.error_text))
        answer.final_state = state
        return asyncio.shield(self._start_saving(answer))

    def _start_saving(self, answer: PendingAnswer) -> "asyncio.Task[None]":
        """One task for each answer, which goes on if those who wait for it are cancelled."""
        if answer.save_task is None or answer.save_task.done():
            answer.save_task = asyncio.create_task(self._save(answer))
        return answer.save_task

    async def _save(self, answer: PendingAnswer) -> None:
        if answer.id not in self.pending or answer.final_state is None:
            return
        message: Message | None = None
        error_text = ""
        try:
            if answer.final_state == "failed":
                message = await answer.record.fail(answer.error_text, answer.origin)
            else:
                message = await answer.record.finish(answer.final_state, answer.origin)
        except MissingError as error:
            error_text = answer.error_text or str(error)
        except HistoryError as error:
            answer.save_error = str(error)
            self._emit(AnswerChanged(answer))
            return
        self.pending.pop(answer.id, None)
        self._emit(AnswerFinished(answer, message, error_text))

    def _error_text(self, error: MmchatError) -> str:
        """The sentence of an error, with the engine's log if it may say more."""
        # About the model's own sentences (too long, no vision) the log says no more.
        local = isinstance(error, EngineError) and not self.remote
        return with_log(str(error), paths().logs / "engine.log" if local else "")


def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task that may be reading from the engine's socket.

    A timer is due after the loop has handled the sockets that have data. Cancelling before that
    makes anyio set the result of a cancelled future, and asyncio prints an InvalidStateError.
    """
    asyncio.get_running_loop().call_later(0, task.cancel)


def _client_class() -> "type[EngineClient]":
    # Imports httpx, which takes too long for the first paint to wait for.
    from mmchat.client import EngineClient

    return EngineClient
