"""The line of questions between the app and the engine. No widgets here.

One question is asked at a time, in the order in which they were sent, each
with its answer row in the history from the moment it was sent: a message that
waits for the model to load is in the file already, and a crash of the app
leaves it there as interrupted. What happens is told through `post`, in the
order in which it happens, on the event loop that runs `Asker.run`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from mmchat.client import EngineClient
from mmchat.client.protocol import (
    Delta,
    Done,
    EngineStatus,
    Event,
    Loading,
    Options,
    Started,
    Waiting,
)
from mmchat.errors import EngineError, HistoryError, MmchatError, TooLongError
from mmchat.history import Answer, History, Message, Origin
from mmchat.settings import Settings, paths
from mmchat.tui.formatting import with_log
from mmchat.tui.turns import TOO_LONG, turns

Phase = Literal["queued", "waiting", "loading", "reading", "writing"]


@dataclass(slots=True)
class Live:
    """An answer that is not finished: waiting for its turn, or being written."""

    answer: Answer
    conversation_id: int
    parent_id: int
    origin: Origin
    phase: Phase = "queued"
    place: int = 0
    """In the engine's line, while `phase` is waiting."""
    text: str = ""
    stopped: bool = False

    @property
    def id(self) -> int:
        return self.answer.id


@dataclass(frozen=True, slots=True)
class Changed:
    """An answer went into another phase."""

    live: Live


@dataclass(frozen=True, slots=True)
class Grew:
    """An answer has more text, in the history already."""

    live: Live
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer is over; `message` is what the history holds of it.

    `message` is None where it cannot be kept: the disk is full, or another
    window deleted the conversation; `problem` then says so.
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


@dataclass(slots=True)
class _Load:
    """A wish in the line: have the model of the settings ready."""

    settings: Settings


class Asker:
    """Asks the engine, one question after the other, and writes the answers down."""

    def __init__(
        self, history: History, settings: Settings, post: Callable[[News], object]
    ) -> None:
        self.settings = settings
        """What the next question is asked with; `use` changes model and adapter."""
        self.live: dict[int, Live] = {}
        """The answers that are not finished, by message id, in the order of asking."""
        self._history = history
        self._post = post
        self._line: deque[Live | _Load] = deque()
        self._news = asyncio.Event()
        self._client: EngineClient | None = None
        self._client_settings = settings
        self._task: asyncio.Task[None] | None = None
        self._now: Live | None = None
        self._closing = False

    @property
    def remote(self) -> bool:
        """Whether another machine's server answers, which mmchat cannot load or look into."""
        return bool(self.settings.engine.url)

    def use(self, model: str | None = None, adapter: str | None = None) -> None:
        """Ask with another model or adapter from now on, and begin to load it."""
        wanted = self.settings.model
        if model is not None:
            # Another base has other adapters.
            wanted = msgspec.structs.replace(wanted, name=model, adapter="")
        if adapter is not None:
            wanted = msgspec.structs.replace(wanted, adapter=adapter)
        self.settings = msgspec.structs.replace(self.settings, model=wanted)
        self.load()

    def load(self) -> None:
        """Have the model loaded before the first question needs it."""
        if not self.remote:
            self._line.append(_Load(self.settings))
            self._news.set()

    def ask(self, conversation_id: int, parent_id: int) -> Live:
        """Put a question in the line: the user message `parent_id` gets one more answer.

        Raises HistoryError where the answer's row cannot be written.
        """
        generation = self.settings.generation
        parameters: dict[str, Any] = {
            name: getattr(generation, name)
            for name in generation.__struct_fields__
            if name != "system"
        }
        wanted = self.settings.model
        origin = Origin(model=wanted.name, adapter=wanted.adapter, parameters=parameters)
        answer = self._history.begin_answer(conversation_id, parent_id=parent_id, origin=origin)
        live = Live(answer, conversation_id, parent_id, origin)
        self.live[live.id] = live
        self._line.append(live)
        self._news.set()
        return live

    def stop(self, live: Live) -> None:
        """End an answer and keep its text; one that still waits leaves the line."""
        live.stopped = True
        if live is self._now:
            if self._task is not None:
                self._task.cancel()
        elif live in self._line:
            self._line.remove(live)
            self._end(live, "stopped")

    def forget(self, conversation_id: int) -> None:
        """Stop all answers of a conversation, before it is deleted."""
        for live in list(self.live.values()):
            if live.conversation_id == conversation_id:
                self.stop(live)

    async def run(self) -> None:
        """Work through the line until cancelled."""
        while not self._closing:
            if not self._line:
                self._news.clear()
                await self._news.wait()
                continue
            job = self._line.popleft()
            if isinstance(job, Live):
                self._now = job
                work = self._answer(job)
            else:
                work = self._load(job)
            self._task = asyncio.create_task(work)
            try:
                await asyncio.shield(self._task)
            except asyncio.CancelledError:
                if not self._task.done():  # we are cancelled, not the job: take it along
                    self._task.cancel()
                    await asyncio.gather(self._task, return_exceptions=True)
                    raise
            finally:
                if isinstance(job, Live):
                    self._end(job, "stopped")  # where it was cancelled before its first step
                self._now = self._task = None

    async def close(self) -> None:
        """Stop what is asked, keep every text, let go of the engine (which stays)."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for live in list(self.live.values()):
            self._end(live, "stopped")
        if self._client is not None:
            await self._client.aclose()

    # The work of one job

    async def _connected(self, settings: Settings) -> EngineClient:
        if self._client is None or settings is not self._client_settings:
            if self._client is not None:
                await self._client.aclose()
            self._client, self._client_settings = EngineClient(settings), settings
        return self._client

    async def _load(self, job: _Load) -> None:
        if any(isinstance(later, _Load) for later in self._line):
            return  # the person has chosen again since
        try:
            client = await self._connected(job.settings)
            self._post(LoadGoes(job.settings.model.name, "starting the engine", 0.0))
            async with aclosing(client.load()) as progress:
                async for step in progress:
                    self._post(LoadGoes(step.model, step.stage, step.fraction))
            self._post(LoadEnded(await client.status()))
        except MmchatError as error:
            self._post(LoadEnded(None, self._sentence(error)))

    async def _answer(self, live: Live) -> None:
        settings = self.settings
        try:
            self._set_phase(live, "waiting")
            asked = await asyncio.to_thread(self._turns, live)
            client = await self._connected(settings)
            done: Done | None = None
            async with aclosing(client.chat(asked, _options(settings))) as events:
                async for event in events:
                    if isinstance(event, Done):
                        done = event
                    else:
                        await self._take(live, event)
            self._finish(live, done)
        except asyncio.CancelledError:
            self._end(live, "stopped")
        except HistoryError as error:
            self._end(live, "failed", str(error))
        except MmchatError as error:
            if isinstance(error, TooLongError):
                live.origin.parameters[TOO_LONG] = True
            self._end(live, "failed", self._sentence(error))
        except BaseException as error:
            # A bug: the person keeps the text and the app shows the traceback.
            self._end(live, "failed", f"A fault in mmchat: {error!r}.")
            raise

    def _turns(self, live: Live) -> list[Any]:
        conversation = self._history.conversation(live.conversation_id)
        branch = path_to(self._history, live.conversation_id, live.parent_id)
        return turns(branch, conversation.system, self._history.image_data)

    async def _take(self, live: Live, event: Event) -> None:
        match event:
            case Waiting(place=place):
                live.place = place
                self._set_phase(live, "waiting")
            case Loading(model=model, stage=stage, fraction=fraction):
                self._set_phase(live, "loading")
                self._post(LoadGoes(model, stage, fraction))
            case Started():
                if live.phase == "loading":
                    self._post(LoadEnded(None))
                live.origin = _with_prompt(live.origin, event)
                self._set_phase(live, "reading")
            case Delta(text=text):
                # In a thread: another program may hold the file, and the screen shall not wait.
                await asyncio.to_thread(live.answer.append, text)
                live.text += text
                if live.phase != "writing":
                    self._set_phase(live, "writing")
                self._post(Grew(live, text))

    def _set_phase(self, live: Live, phase: Phase) -> None:
        live.phase = phase
        self._post(Changed(live))

    def _finish(self, live: Live, done: Done | None) -> None:
        if done is None:
            unfinished = EngineError("The engine closed the answer unfinished.")
            self._end(live, "failed", self._sentence(unfinished))
            return
        live.origin = _with_figures(live.origin, done)
        state: Literal["complete", "length", "stopped"] = "complete"
        if done.finish_reason == "length":
            state = "length"
        elif done.finish_reason == "cancelled":
            state = "stopped"
        self._end(live, state)

    def _end(
        self,
        live: Live,
        state: Literal["complete", "length", "stopped", "failed"],
        sentence: str = "",
    ) -> None:
        if self.live.pop(live.id, None) is None:
            return
        if live.phase == "loading":  # nothing else would take the bar away
            self._post(LoadEnded(None, sentence))
        try:
            if state == "failed":
                message = live.answer.fail(sentence, live.origin)
            else:
                message = live.answer.finish(state, live.origin)
        except HistoryError as error:
            self._post(Ended(live, None, sentence or str(error)))
        else:
            self._post(Ended(live, message))

    def _sentence(self, error: MmchatError) -> str:
        # Of the model's own sentences (too long, no eyes) the log knows no more.
        local = isinstance(error, EngineError) and not self.remote
        return with_log(str(error), paths().logs / "engine.log" if local else "")


def path_to(history: History, conversation_id: int, message_id: int) -> list[Message]:
    """The messages from the first one to `message_id`, whichever branch is shown."""
    branch = history.branch(conversation_id)
    for place, message in enumerate(branch):
        if message.id == message_id:
            return branch[: place + 1]
    path: list[Message] = []
    at: int | None = message_id
    while at is not None:
        path.append(history.message(at))
        at = path[-1].parent_id
    return path[::-1]


def _options(settings: Settings) -> Options:
    generation = settings.generation
    return Options(
        **{
            name: getattr(generation, name)
            for name in generation.__struct_fields__
            if name in Options.__struct_fields__
        }
    )


def _with_prompt(origin: Origin, started: Started) -> Origin:
    parameters = dict(origin.parameters)
    if started.dropped_turns:
        parameters["dropped_turns"] = started.dropped_turns
    if started.context_length:
        parameters["context_length"] = started.context_length
    return Origin(
        model=origin.model,
        adapter=origin.adapter,
        parameters=parameters,
        prompt_tokens=started.prompt_tokens,
        image_tokens=started.image_tokens,
        cached_tokens=started.cached_tokens,
    )


def _with_figures(origin: Origin, done: Done) -> Origin:
    return Origin(
        model=done.model or origin.model,
        adapter=done.adapter,
        adapter_hash=done.adapter_hash,
        quantization=done.quantization,
        device=done.device,
        parameters=origin.parameters,
        prompt_tokens=done.prompt_tokens or origin.prompt_tokens,
        image_tokens=done.image_tokens or origin.image_tokens,
        completion_tokens=done.completion_tokens,
        cached_tokens=done.cached_tokens,
        image_ms=done.image_ms,
        prefill_ms=done.prefill_ms,
        decode_ms=done.decode_ms,
        tokens_per_second=done.tokens_per_second,
    )
