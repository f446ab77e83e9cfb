"""One thread owns the model; everybody else waits in line.

The line is kept on the event loop alone: only `_run` and what it calls are on
the worker's thread, and they speak to the loop through `call_soon_threadsafe`.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from mmchat.client.protocol import (
    BackendStatus,
    Delta,
    Done,
    Event,
    Loading,
    Options,
    State,
    Turn,
    Waiting,
)
from mmchat.errors import EngineError, MmchatError

if TYPE_CHECKING:
    from mmchat.engine.backend import Backend

log = logging.getLogger(__name__)


class Choice(msgspec.Struct, frozen=True):
    """Which model a request wants; None keeps what is loaded."""

    model: str | None = None
    adapter: str | None = None
    quantization: str | None = None
    device: str | None = None


class Job:
    """A request on its way to the model and back.

    `events` yields what happens, an MmchatError where it failed, and None at the end.
    """

    def __init__(
        self,
        work: Callable[["Job"], None],
        wanted: str,
        default: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.work = work
        self.wanted = wanted
        """The model that it names; "" is whatever is loaded."""
        self.model = wanted or default
        self.told = False
        """Whether a first Loading event is out, while the backend's imports take their time."""
        self.events: asyncio.Queue[Event | MmchatError | None] = asyncio.Queue()
        self.cancelled = threading.Event()
        self._loop = loop

    def emit(self, event: Event | MmchatError | None) -> None:
        """From the worker's thread."""
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class GivenUpError(BaseException):
    """A load that nobody waits for, ended because the next in line wants another model.

    No Exception, so that nothing on the way through foreign code takes it for a fault.
    """


class Worker:
    """The line of requests, and the thread that answers them one at a time."""

    def __init__(
        self, create_backend: Callable[[], "Backend"], default: Choice, log_file: str
    ) -> None:
        """`default` is loaded for a request that names no model."""
        self._create = create_backend
        self._default = default
        self._log_file = log_file
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._line: deque[Job] = deque()
        self._running: Job | None = None
        self._next = ""
        """The model that the first in line names. Read by the worker's thread too: one assignment."""
        self.ending = False
        self._last_end = time.monotonic()
        # Written by the worker's thread only, each by one assignment, read by both.
        self._backend: Backend | None = None
        self._loaded: Choice | None = None
        self.backend_status = BackendStatus()
        self.loading: Loading | None = None
        self.error = ""
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    # On the event loop.

    @property
    def state(self) -> State:
        if self.loading is not None:
            return "loading"
        if self.backend_status.model:
            return "ready"
        return "failed" if self.error else "empty"

    @property
    def default_model(self) -> str:
        return self._default.model or ""

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is under way."""
        return 0.0 if self._running is not None else time.monotonic() - self._last_end

    def touch(self) -> None:
        """A request that needs no model counts as life too."""
        self._last_end = time.monotonic()

    def chat(self, choice: Choice, turns: tuple[Turn, ...], options: Options) -> Job:
        """An answer: Waiting* Loading* Started Delta* Done."""
        return self._submit(lambda job: self._chat(job, choice, turns, options), choice)

    def load(self, choice: Choice) -> Job:
        """A load: Waiting* Loading*."""
        return self._submit(lambda job: self._load(job, choice), choice)

    def cancel(self, job: Job) -> None:
        """Takes the job out of the line, or stops it at its next token."""
        job.cancelled.set()
        if job in self._line:
            self._line.remove(job)
            job.events.put_nowait(None)
            self._line_moved()

    def refuse(self) -> None:
        """Takes no more requests; whoever sends one may start another engine."""
        self.ending = True

    def close(self) -> None:
        """Ends every request with a sentence, and the thread after its next token."""
        self.refuse()
        for job in (*self._line, self._running):
            if job is not None:
                job.cancelled.set()
                job.events.put_nowait(EndingError())
                job.events.put_nowait(None)
        self._line.clear()
        self._line_moved()
        self._inbox.put(None)

    def join(self, seconds: float) -> bool:
        """Whether the thread has ended within `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _submit(self, work: Callable[[Job], None], choice: Choice) -> Job:
        if self.ending:
            raise EndingError
        job = Job(work, choice.model or "", self.default_model, self._loop)
        if self._running is None:
            self._start(job)
        else:
            self._line.append(job)
            self._line_moved()
        return job

    def _start(self, job: Job) -> None:
        self._running = job
        if self._backend is None:
            job.told = True
            job.events.put_nowait(Loading(job.model, "Starting", 0.0))
        self._inbox.put(job)

    def _finished(self) -> None:
        self._running = None
        self._last_end = time.monotonic()
        if self._line:
            self._start(self._line.popleft())
            self._line_moved()

    def _line_moved(self) -> None:
        self._next = self._line[0].wanted if self._line else ""
        for place, job in enumerate(self._line, start=1):
            job.events.put_nowait(Waiting(place))

    # On the worker's thread.

    def _serve(self) -> None:
        try:
            self._ready_backend()  # its imports take seconds: begin before the first request
        except Exception as error:
            self.error = str(self._sentence(error))
        while (job := self._inbox.get()) is not None:
            try:
                if not job.cancelled.is_set():
                    job.work(job)
            except GivenUpError:
                log.info("the load of %s was given up", job.model)
            except Exception as error:
                sentence = self._sentence(error)
                log.info("a request failed: %s", sentence)
                job.emit(sentence)
            finally:
                job.emit(None)
                self._loop.call_soon_threadsafe(self._finished)

    def _sentence(self, error: Exception) -> MmchatError:
        if isinstance(error, MmchatError):
            return error
        log.error("internal error", exc_info=error)
        return own_mistake(error, self._log_file)

    def _ready_backend(self) -> "Backend":
        if self._backend is None:
            self._backend = self._create()
        return self._backend

    def _chat(self, job: Job, choice: Choice, turns: tuple[Turn, ...], options: Options) -> None:
        self._load(job, choice)
        backend = self._ready_backend()
        if job.cancelled.is_set():
            return
        answer = backend.generate(turns, options, job.cancelled.is_set)
        try:
            for event in answer:
                job.emit(event)
                if job.cancelled.is_set() and isinstance(event, Delta):
                    break
                if isinstance(event, Done):
                    break
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
            self.backend_status = backend.status()

    def _load(self, job: Job, choice: Choice) -> None:
        backend = self._ready_backend()
        loaded = self._loaded
        if loaded is not None and self._fits(choice, loaded) and backend.is_current():
            worn = loaded.adapter or ""
            asked = worn if choice.adapter is None else choice.adapter
            # One that was trained on since is read again, without its base.
            if asked != worn or not backend.adapter_is_current():
                self._use_adapter(backend, loaded, asked)
            return
        # What is not asked for is kept from before, but an adapter belongs to its model.
        before = loaded or self._default
        same_model = choice.model is None or choice.model == before.model
        adapter = choice.adapter
        if adapter is None:
            adapter = (before.adapter if same_model else None) or ""
        wanted = Choice(
            model=choice.model or before.model,
            adapter=adapter,
            quantization=choice.quantization or before.quantization or "auto",
            device=choice.device or before.device or "auto",
        )
        self._replace(job, backend, wanted)

    def _fits(self, choice: Choice, loaded: Choice) -> bool:
        """Whether what is loaded is what is asked for, the adapter aside; `auto` takes all."""
        held = self.backend_status
        return (
            choice.model in (None, loaded.model)
            and choice.quantization in (None, "auto", loaded.quantization, held.quantization)
            and choice.device in (None, "auto", loaded.device, held.device)
        )

    def _replace(self, job: Job, backend: "Backend", wanted: Choice) -> None:
        model = wanted.model or ""

        def progress(stage: str, fraction: float) -> None:
            self.loading = Loading(model, stage, min(max(fraction, 0.0), 1.0))
            job.emit(self.loading)
            if job.cancelled.is_set() and self._next not in ("", model):
                raise GivenUpError

        held = self.backend_status
        self.error = ""
        self.loading = Loading(model, "Starting", 0.0)
        if not job.told:
            job.emit(self.loading)
        try:
            backend.load(
                model,
                wanted.adapter or "",
                wanted.quantization or "auto",
                wanted.device or "auto",
                progress,
            )
        except GivenUpError:
            self._note_what_is_left(backend, held)
            raise
        except Exception as error:
            self._note_what_is_left(backend, held)
            sentence = self._sentence(error)
            self.error = str(sentence)
            raise sentence from error
        else:
            self._loaded = wanted
            self.backend_status = backend.status()
        finally:
            self.loading = None

    def _note_what_is_left(self, backend: "Backend", held: BackendStatus) -> None:
        """After a load that failed: what was `held` before it, or nothing."""
        self.backend_status = backend.status()
        if self.backend_status.model == "" or self.backend_status.model != held.model:
            self._loaded = None
            self.backend_status = BackendStatus()

    def _use_adapter(self, backend: "Backend", loaded: Choice, adapter: str) -> None:
        try:
            backend.use_adapter(adapter)
        finally:
            self.backend_status = backend.status()
            # An adapter that failed while it was put on has taken the one before it off.
            self._loaded = msgspec.structs.replace(loaded, adapter=self.backend_status.adapter)


def own_mistake(error: Exception, log_file: str) -> EngineError:
    """What is said of an exception that nobody expected; the log has its traceback."""
    return EngineError(
        f"The engine made a mistake of its own ({type(error).__name__}); "
        f"its log says where: {log_file}"
    )


class EndingError(EngineError):
    """The request came too late and was not taken; another engine may take it."""

    def __init__(self) -> None:
        super().__init__("The engine was asked to end; the next message starts it again.")
