"""The queue of requests, and the one thread that runs the model.

The queue is used on the event loop only. Methods below "On the worker's thread" run on that
thread, and call the loop through `call_soon_threadsafe`.
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
    EndingError,
    Event,
    Loading,
    Options,
    State,
    Waiting,
)
from mmchat.errors import EngineError, MmchatError
from mmchat.turns import ImagePart, Turn

if TYPE_CHECKING:
    from mmchat.engine.backend import Backend

log = logging.getLogger(__name__)


class ModelChoice(msgspec.Struct, frozen=True):
    """The model that a request wants; None keeps what is loaded."""

    model: str | None = None
    adapter: str | None = None
    quantization: str | None = None
    device: str | None = None


class Job:
    """A request for the model's thread.

    `events` receives its events, an MmchatError if it fails, and None at the end.
    """

    def __init__(
        self,
        work: Callable[["Job"], None],
        requested: str,
        default: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.work = work
        self.requested = requested
        """The model in the request; "" means the loaded one."""
        self.model = requested or default
        self.loading_announced = False
        """Whether a first Loading event was sent while the backend was still being imported."""
        self.events: asyncio.Queue[Event | MmchatError | None] = asyncio.Queue()
        self.cancelled = threading.Event()
        self._loop = loop

    def emit(self, event: Event | MmchatError | None) -> None:
        """Adds an event, from the worker's thread."""
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class LoadCancelled(BaseException):
    """A load was cancelled: its client disconnected, and the next request needs another model.

    Not an Exception, so that no library on the way handles it as an error.
    """


class Worker:
    """Processes requests one at a time, in order."""

    def __init__(
        self, create_backend: Callable[[], "Backend"], default: ModelChoice, log_file: str
    ) -> None:
        """`default` is loaded for a request without a model."""
        self._create_backend = create_backend
        self._default = default
        self._log_file = log_file
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._next_model = ""
        """The model in the next request. Read by the worker's thread, so it is assigned atomically."""
        self.ending = False
        self._last_end = time.monotonic()
        # Written by the worker's thread only, atomically, and read by both threads.
        self._backend: Backend | None = None
        self._loaded: ModelChoice | None = None
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
        return len(self._queue)

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is running."""
        return 0.0 if self._running is not None else time.monotonic() - self._last_end

    def touch(self) -> None:
        """Resets `idle_s`, for a request that does not need the model."""
        self._last_end = time.monotonic()

    def chat(
        self, choice: ModelChoice, turns: tuple[Turn[ImagePart], ...], options: Options
    ) -> Job:
        """Queues an answer. Events: Waiting* Loading* Started Delta* Done."""
        return self._submit(lambda job: self._chat(job, choice, turns, options), choice)

    def load(self, choice: ModelChoice) -> Job:
        """Queues a load. Events: Waiting* Loading*."""
        return self._submit(lambda job: self._load(job, choice), choice)

    def cancel(self, job: Job) -> None:
        """Removes the job from the queue, or stops it at its next token."""
        job.cancelled.set()
        if job in self._queue:
            self._queue.remove(job)
            job.events.put_nowait(None)
            self._queue_changed()

    def stop_accepting(self) -> None:
        """Refuses requests from now on; clients may start another engine."""
        self.ending = True

    def close(self) -> None:
        """Ends every request with an EndingError, and the thread after its next token."""
        self.stop_accepting()
        for job in (*self._queue, self._running):
            if job is not None:
                job.cancelled.set()
                job.events.put_nowait(EndingError())
                job.events.put_nowait(None)
        self._queue.clear()
        self._queue_changed()
        self._inbox.put(None)

    def join(self, seconds: float) -> bool:
        """Whether the thread has ended within `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _submit(self, work: Callable[[Job], None], choice: ModelChoice) -> Job:
        if self.ending:
            raise EndingError
        job = Job(work, choice.model or "", self.default_model, self._loop)
        if self._running is None:
            self._start(job)
        else:
            self._queue.append(job)
            self._queue_changed()
        return job

    def _start(self, job: Job) -> None:
        self._running = job
        if self._backend is None:
            job.loading_announced = True
            job.events.put_nowait(Loading(job.model, "Starting", 0.0))
        self._inbox.put(job)

    def _finished(self) -> None:
        self._running = None
        self._last_end = time.monotonic()
        if self._queue:
            self._start(self._queue.popleft())
            self._queue_changed()

    def _queue_changed(self) -> None:
        self._next_model = self._queue[0].requested if self._queue else ""
        for place, job in enumerate(self._queue, start=1):
            job.events.put_nowait(Waiting(place))

    # On the worker's thread.

    def _serve(self) -> None:
        try:
            self._get_backend()  # its imports take seconds, so start them before the first request
        except Exception as error:
            self.error = str(self._as_mmchat_error(error))
        while (job := self._inbox.get()) is not None:
            try:
                if not job.cancelled.is_set():
                    job.work(job)
            except LoadCancelled:
                log.info("the load of %s was cancelled", job.model)
            except Exception as error:
                failure = self._as_mmchat_error(error)
                log.info("a request failed: %s", failure)
                job.emit(failure)
            finally:
                job.emit(None)
                self._loop.call_soon_threadsafe(self._finished)

    def _as_mmchat_error(self, error: Exception) -> MmchatError:
        if isinstance(error, MmchatError):
            return error
        log.error("internal error", exc_info=error)
        return internal_error(error, self._log_file)

    def _get_backend(self) -> "Backend":
        if self._backend is None:
            self._backend = self._create_backend()
        return self._backend

    def _chat(
        self, job: Job, choice: ModelChoice, turns: tuple[Turn[ImagePart], ...], options: Options
    ) -> None:
        self._load(job, choice)
        backend = self._get_backend()
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

    def _load(self, job: Job, choice: ModelChoice) -> None:
        """Loads the model and adapter of `choice`, unless they are loaded."""
        backend = self._get_backend()
        loaded = self._loaded
        if loaded is not None and self._is_loaded(choice, loaded) and backend.is_current():
            active = loaded.adapter or ""
            requested = active if choice.adapter is None else choice.adapter
            # An adapter whose files have changed (by training) is read again; its base is not.
            if requested != active or not backend.adapter_is_current():
                self._use_adapter(backend, loaded, requested)
            return
        # What the request omits stays as it is, but an adapter belongs to its model.
        before = loaded or self._default
        same_model = choice.model is None or choice.model == before.model
        adapter = choice.adapter
        if adapter is None:
            adapter = (before.adapter if same_model else None) or ""
        self._load_model(
            job,
            backend,
            ModelChoice(
                model=choice.model or before.model,
                adapter=adapter,
                quantization=choice.quantization or before.quantization or "auto",
                device=choice.device or before.device or "auto",
            ),
        )

    def _is_loaded(self, choice: ModelChoice, loaded: ModelChoice) -> bool:
        """Whether the model of `choice` is loaded, with any adapter; `auto` matches everything."""
        status = self.backend_status
        return (
            choice.model in (None, loaded.model)
            and choice.quantization in (None, "auto", loaded.quantization, status.quantization)
            and choice.device in (None, "auto", loaded.device, status.device)
        )

    def _load_model(self, job: Job, backend: "Backend", requested: ModelChoice) -> None:
        model = requested.model or ""

        def progress(stage: str, fraction: float) -> None:
            self.loading = Loading(model, stage, min(max(fraction, 0.0), 1.0))
            job.emit(self.loading)
            if job.cancelled.is_set() and self._next_model not in ("", model):
                raise LoadCancelled

        before = self.backend_status
        self.error = ""
        self.loading = Loading(model, "Starting", 0.0)
        if not job.loading_announced:
            job.emit(self.loading)
        try:
            backend.load(
                model,
                requested.adapter or "",
                requested.quantization or "auto",
                requested.device or "auto",
                progress,
            )
        except LoadCancelled:
            self._update_after_failed_load(backend, before)
            raise
        except Exception as error:
            self._update_after_failed_load(backend, before)
            failure = self._as_mmchat_error(error)
            self.error = str(failure)
            raise failure from error
        else:
            self._loaded = requested
            self.backend_status = backend.status()
        finally:
            self.loading = None

    def _update_after_failed_load(self, backend: "Backend", before: BackendStatus) -> None:
        """Updates the status: either the model from `before` is still loaded, or none is."""
        self.backend_status = backend.status()
        if self.backend_status.model == "" or self.backend_status.model != before.model:
            self._loaded = None
            self.backend_status = BackendStatus()

    def _use_adapter(self, backend: "Backend", loaded: ModelChoice, adapter: str) -> None:
        try:
            backend.use_adapter(adapter)
        finally:
            self.backend_status = backend.status()
            # If attaching failed, the previous adapter may be gone, too.
            self._loaded = msgspec.structs.replace(loaded, adapter=self.backend_status.adapter)


def internal_error(error: Exception, log_file: str) -> EngineError:
    """The message for an unexpected exception; the log has its traceback."""
    return EngineError(
        f"Internal error in the engine ({type(error).__name__}). Details: {log_file}"
    )
