"""The line of questions between the app and the engine. No widgets here.

One question is asked at a time, in the order in which they were sent, each
with its answer row in the history from the moment it was sent: a message that
waits for the model to load is in the file already, and a crash of the app
leaves it there as interrupted. What happens is told through `post`, in the
order in which it happens, on the event loop that runs `Asker.run`.

Every write is in a thread: another program may hold the file for seconds.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mmchat.client.protocol import Delta, Done, Event, Loading, Started, Waiting
from mmchat.display.messages import with_log
from mmchat.errors import EngineError, HistoryError, MmchatError, TooLongError
from mmchat.history import Answer, History, Message, MissingError, Origin
from mmchat.settings import Settings, paths
from mmchat.tui.news import Changed, Ended, Ending, Grew, Live, LoadEnded, LoadGoes, News, Phase
from mmchat.tui.origins import options, wanted, with_figures, with_prompt
from mmchat.tui.turns import TOO_LONG, turns

if TYPE_CHECKING:
    from mmchat.client import EngineClient

_T = TypeVar("_T")


@dataclass(slots=True)
class _Load:
    """A wish in the line: have the model of the settings ready."""

    settings: Settings
    quiet: bool = False
    """It is there already, and hardly takes a moment."""


class Asker:
    """Asks the engine, one question after the other, and writes the answers down."""

    def __init__(
        self, history: History, settings: Settings, post: Callable[[News], object]
    ) -> None:
        self.settings = settings
        """What the next question is asked with; `use` changes model and adapter."""
        self.live: dict[int, Live] = {}
        """The answers that the history does not have whole, by message id, in order of asking."""
        self._history = history
        self._post = post
        self._line: deque[Live | _Load] = deque()
        self._news = asyncio.Event()
        self._client: EngineClient | None = None
        self._client_settings = settings
        self._task: asyncio.Task[Any] | None = None
        self._now: Live | None = None
        self._ends: dict[int, asyncio.Task[None]] = {}
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

    def load(self, quiet: bool = False) -> None:
        """Have the model loaded before the first question needs it."""
        if not self.remote:
            self._line.append(_Load(self.settings, quiet))
            self._news.set()

    def origin(self, settings: Settings | None = None) -> Origin:
        """What an answer is begun with that is asked now."""
        return wanted(settings or self.settings)

    def ask(
        self, answer: Answer, question: Message, origin: Origin, settings: Settings | None = None
    ) -> None:
        """Put a question in the line, whose answer is begun in the history.

        With `settings` of its own it is asked with those, and nothing else is.
        """
        live = Live(answer, question.conversation_id, question.id, origin, settings)
        self.live[live.id] = live
        self._line.append(live)
        self._news.set()

    def stop(self, live: Live) -> None:
        """End an answer and keep its text; one that still waits leaves the line."""
        if live.stopped or live.ending is not None:
            return
        live.stopped = True
        self._post(Changed(live))
        if live is self._now:
            if self._task is not None:
                _cancel(self._task)
        elif live in self._line:
            self._line.remove(live)
            self._end(live, ("stopped", ""))

    def forget(self, conversation_id: int) -> None:
        """Stop all answers of a conversation that was deleted."""
        for live in list(self.live.values()):
            if live.conversation_id == conversation_id:
                self.stop(live)

    def end_again(self) -> None:
        """Try once more to write down the ends that could not be written."""
        for live in self.live.values():
            if live.problem:
                self._write_end(live)

    async def run(self) -> None:
        """Work through the line until cancelled."""
        while not self._closing:
            if not self._line:
                self._news.clear()
                await self._news.wait()
                continue
            job = self._line.popleft()
            if isinstance(job, Live):
                await self._answer(job)
            else:
                await self._stoppable(self._load(job))

    async def close(self) -> None:
        """Stop what is asked, keep every text, let go of the engine (which stays)."""
        self._closing = True
        if self._task is not None:
            _cancel(self._task)
            await asyncio.wait({self._task})
        for live in list(self.live.values()):
            await self._end(live, live.ending or ("stopped", ""))
            if live.problem:
                break  # the next one would wait as long, in vain
        if self._client is not None:
            await self._client.aclose()

    # The work of one job

    async def _stoppable(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """The result of `work`; None where it was cancelled, but not whoever waits for it."""
        self._task = task = asyncio.create_task(work)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # we are cancelled, not the work: take it along
            _cancel(task)
            await asyncio.wait({task})
            raise
        finally:
            self._task = None
        return None if task.cancelled() else task.result()

    async def _connected(self, settings: Settings) -> "EngineClient":
        if self._client is None or settings is not self._client_settings:
            made = await asyncio.to_thread(_client_class)
            if self._client is not None:
                client, self._client = self._client, None
                await client.aclose()
            self._client, self._client_settings = made(settings), settings
        return self._client

    async def _load(self, job: _Load) -> None:
        if any(isinstance(later, _Load) for later in self._line):
            return  # the person has chosen again since
        try:
            if not job.quiet:
                self._post(LoadGoes(job.settings.model.name, "starting the engine", 0.0))
            client = await self._connected(job.settings)
            async with aclosing(client.load()) as progress:
                async for step in progress:
                    self._post(LoadGoes(step.model, step.stage, step.fraction))
            self._post(LoadEnded(await client.status()))
        except MmchatError as error:
            self._post(LoadEnded(None, self._sentence(error)))

    async def _answer(self, live: Live) -> None:
        self._now = live
        ending: Ending | None = None
        try:
            ending = await self._stoppable(self._asked(live))
        except Exception as error:
            # A bug: the person keeps the text and the app shows the traceback.
            ending = "failed", f"Internal error in mmchat: {error!r}."
            raise
        finally:
            self._now = None
            await self._end(live, ending or ("stopped", ""))

    async def _asked(self, live: Live) -> Ending:
        settings = live.settings or self.settings
        done: Done | None = None
        try:
            self._set_phase(live, "waiting")
            asked = await asyncio.to_thread(self._turns, live)
            client = await self._connected(settings)
            async with aclosing(client.chat(asked, options(settings))) as events:
                async for event in events:
                    if isinstance(event, Done):
                        done = event
                    else:
                        await self._take(live, event)
            if done is None:
                raise EngineError("The engine closed the answer unfinished.")
        except HistoryError as error:
            return "failed", str(error)
        except MmchatError as error:
            if isinstance(error, TooLongError):
                live.origin.parameters[TOO_LONG] = True
            return "failed", self._sentence(error)
        live.origin = with_figures(live.origin, done)
        if done.finish_reason == "length":
            return "length", ""
        return ("stopped" if done.finish_reason == "cancelled" else "complete"), ""

    def _turns(self, live: Live) -> list[Any]:
        conversation = self._history.conversation(live.conversation_id)
        branch = self._history.path_to(live.parent_id)
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
                live.origin = with_prompt(live.origin, event)
                self._set_phase(live, "reading")
            case Delta(text=text):
                await asyncio.to_thread(live.answer.append, text)
                live.text += text
                if live.phase != "writing":
                    self._set_phase(live, "writing")
                self._post(Grew(live, text))

    def _set_phase(self, live: Live, phase: Phase) -> None:
        live.phase = phase
        self._post(Changed(live))

    # The end of an answer

    def _end(self, live: Live, ending: Ending) -> "asyncio.Future[None]":
        """Write down how an answer ended; it lives until that is done."""
        if live.ending is None and live.phase == "loading":
            self._post(LoadEnded(None, ending[1]))  # nothing else would take the bar away
        live.ending = ending
        return asyncio.shield(self._write_end(live))

    def _write_end(self, live: Live) -> "asyncio.Task[None]":
        """One task an answer, which goes on when those who wait for it are cancelled."""
        if live.id not in self._ends:
            self._ends[live.id] = asyncio.create_task(self._keep(live))
            self._ends[live.id].add_done_callback(lambda _: self._ends.pop(live.id))
        return self._ends[live.id]

    async def _keep(self, live: Live) -> None:
        if live.id not in self.live or live.ending is None:
            return
        state, sentence = live.ending
        message: Message | None = None
        problem = ""
        try:
            if state == "failed":
                message = await asyncio.to_thread(live.answer.fail, sentence, live.origin)
            else:
                message = await asyncio.to_thread(live.answer.finish, state, live.origin)
        except MissingError as error:
            problem = sentence or str(error)
        except HistoryError as error:
            live.problem = str(error)
            self._post(Changed(live))
            return
        self.live.pop(live.id, None)
        self._post(Ended(live, message, problem))

    def _sentence(self, error: MmchatError) -> str:
        # Of the model's own sentences (too long, no eyes) the log knows no more.
        local = isinstance(error, EngineError) and not self.remote
        return with_log(str(error), paths().logs / "engine.log" if local else "")


def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task that may be reading from the engine's socket.

    A timer is due after the loop has handled the sockets that have data. Cancelling before that
    makes anyio set the result of a cancelled future, and asyncio prints an InvalidStateError.
    """
    asyncio.get_running_loop().call_later(0, task.cancel)


def _client_class() -> "type[EngineClient]":
    # Loads httpx, which the first paint shall not wait for.
    from mmchat.client import EngineClient

    return EngineClient
