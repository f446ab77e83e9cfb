"""A backend without torch that answers by script: the real process, service and protocol.

`MMCHAT_ENGINE_BACKEND=tests.engine.scripted:create_backend` selects it (and
`PYTHONPATH` has to hold the repository). A test folder's fixture is

    @pytest.fixture
    def scripted_engine(home, monkeypatch):
        with engine_by_script(monkeypatch):
            yield

The last user text is a command:

    say A B C       streams "A ", "B ", "C "
    slowly A B C    the same, 50 ms before each word
    gate NAME       streams "before ", waits until the file `gates/NAME` is in the data
                    folder, streams "after " (see `open_gate`)
    lines NAME      streams "line 1\\n" to "line 9\\n", waits as `gate`, streams the next nine
    forever         streams "tick-1 ", "tick-2 " … until it is cancelled
    hang            streams nothing until it is cancelled (a long prefill)
    crash           streams "one ", "two ", then the process dies at once (exit code 9)
    oom             EngineError, as for memory that does not suffice
    too-long        TooLongError, as for a message that the context has no room for
    bug             a RuntimeError, as for a mistake in the engine
    fail-late       streams "one ", then an EngineError
    echo-images     "N pictures: SHA SHA … "
    echo-options    the options as they arrived
    echo-turns      the turns as they arrived, pictures as <sha>
    unicode         characters of one to four bytes, combining marks, an emoji family
    escape          terminal escapes, as a hostile model would write them
    pid             the process id
    anything else   "I see N pictures. You said: TEXT"

Every word is one token: `max_tokens` cuts with the finish reason "length".
Model names: "unknown" is not found, "broken" cannot be loaded (ModelError), "buggy" raises a RuntimeError,
"crash-load" kills the process, "gate-NAME" waits for a gate in its load, "steps-NAME" too while
it tells its progress again and again, "blind" has no vision; every other name loads, and a folder's model.safetensors is read for its hash.
Adapters: "broken" is an AdapterError, and "unfit" one that takes off what was on before.
Every answer adds a line to `scripted.jsonl` in the data folder: `{"text", "tokens", "finish"}`.
"""

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mmchat.client.endpoint import engine_lives, lock_holder
from mmchat.client.protocol import BackendStatus, Delta, Done, FinishReason, Options, Started
from mmchat.errors import (
    AdapterError,
    EngineError,
    ModelError,
    ModelNotFoundError,
    TooLongError,
)
from mmchat.settings import paths
from mmchat.turns import ImagePart, Turn

if TYPE_CHECKING:
    import pytest  # not in the engine's process

BACKEND = "tests.engine.scripted:create_backend"


def environment() -> dict[str, str]:
    """What a process needs to start an engine that answers by script."""
    return {
        "MMCHAT_ENGINE_BACKEND": BACKEND,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }


@contextlib.contextmanager
def engine_by_script(monkeypatch: "pytest.MonkeyPatch") -> Iterator[None]:
    """Engines started inside answer by script; the one that is left over is ended."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    try:
        yield
    finally:
        end_engine()


def end_engine() -> None:
    """kill -9 of whatever engine lives in this home, and its end awaited."""
    deadline = time.monotonic() + 30
    while engine_lives():
        assert time.monotonic() < deadline
        holder = lock_holder()
        if holder not in (None, os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, signal.SIGKILL)
        time.sleep(0.01)


def open_gate(name: str) -> None:
    """Lets the answer or load that waits at the gate `name` go on."""
    folder = paths().data / "gates"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()


def answers() -> list[dict[str, object]]:
    """What the scripted engine has answered so far, oldest first."""
    file = paths().data / "scripted.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _wait_for_gate(name: str, cancelled: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not (paths().data / "gates" / name).exists():
        if cancelled() or time.monotonic() > deadline:
            return
        time.sleep(0.002)


def _weights_hash(model: str) -> str:
    file = Path(model) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _text(turn: Turn) -> str:
    return turn.text.strip()


def _shown(turn: Turn) -> str:
    parts = [f"<{p.sha256[:8]}>" if isinstance(p, ImagePart) else p for p in turn.parts]
    return f"{turn.role}={''.join(parts)}"


class ScriptedBackend:
    """Answers by script; see the module."""

    def __init__(self) -> None:
        self._status = BackendStatus()

    def load(
        self,
        model: str,
        adapter: str,
        quantization: str,
        device: str,
        progress: Callable[[str, float], None],
    ) -> None:
        if model == "unknown":
            raise ModelNotFoundError("There is no model unknown.")
        if model == "broken":
            raise ModelError("The model broken cannot be read: its weights are cut short.")
        self._status = BackendStatus()
        progress("Reading the weights", 0.25)
        if model == "buggy":
            raise RuntimeError("a bug in loading")
        if model == "crash-load":
            os._exit(9)
        if model.startswith("gate-"):
            _wait_for_gate(model.removeprefix("gate-"), lambda: False)
        if model.startswith("steps-"):
            _wait_for_gate(model.removeprefix("steps-"), lambda: progress("Reading", 0.5))
        progress("Ready", 1.0)
        self._status = BackendStatus(
            model=model,
            device="cpu" if device == "auto" else device,
            quantization="4bit" if quantization == "auto" else quantization,
            compute_dtype="float32",
            context_length=1024,
            vision=model != "blind",
            memory_bytes=1_000_000,
            weights_hash=_weights_hash(model),
        )
        self.use_adapter(adapter)

    def is_current(self) -> bool:
        return self._status.weights_hash == _weights_hash(self._status.model)

    def adapter_is_current(self) -> bool:
        return True

    def use_adapter(self, adapter: str) -> None:
        if adapter == "broken":
            raise AdapterError("The adapter broken does not fit this model.")
        on = "" if adapter == "unfit" else adapter
        digest = hashlib.sha256(on.encode()).hexdigest() if on else ""
        self._status = msgspec.structs.replace(self._status, adapter=on, adapter_hash=digest)
        if adapter == "unfit":
            raise AdapterError("The adapter unfit has other sizes than this model.")

    def status(self) -> BackendStatus:
        return self._status

    def generate(
        self, turns: Sequence[Turn], options: Options, cancelled: Callable[[], bool]
    ) -> Iterator[Started | Delta | Done]:
        pictures = [part for turn in turns for part in turn.parts if isinstance(part, ImagePart)]
        assert all(part.data is not None for part in pictures)
        command = _text(turns[-1])
        prompt = sum(len(_text(turn).split()) for turn in turns) + 4 * len(pictures)
        on = self._status
        yield Started(prompt, 4 * len(pictures), 0, 0, 1024, on.adapter, on.adapter_hash)
        tokens = 0
        finish: FinishReason = "stop"
        try:
            for word in self._words(command, turns, pictures, options, cancelled):
                if cancelled():
                    finish = "cancelled"
                    break
                if tokens == options.max_tokens:
                    finish = "length"
                    break
                tokens += 1
                yield Delta(word)
            if cancelled():
                finish = "cancelled"
        except GeneratorExit:
            finish = "cancelled"
            raise
        finally:
            with (paths().data / "scripted.jsonl").open("a") as log:
                log.write(json.dumps({"text": command, "tokens": tokens, "finish": finish}) + "\n")
        yield Done(
            finish_reason=finish,
            completion_tokens=tokens,
            prefill_ms=1.0,
            decode_ms=2.0,
            tokens_per_second=tokens / 0.002,
            model=self._status.model,
            adapter=self._status.adapter,
            adapter_hash=self._status.adapter_hash,
            quantization=self._status.quantization,
            device=self._status.device,
            prompt_tokens=prompt,
            image_tokens=4 * len(pictures),
            context_length=1024,
        )

    def _words(
        self,
        command: str,
        turns: Sequence[Turn],
        pictures: list[ImagePart],
        options: Options,
        cancelled: Callable[[], bool],
    ) -> Iterator[str]:
        verb, _, rest = command.partition(" ")
        match verb:
            case "say" | "slowly":
                for word in rest.split():
                    if verb == "slowly":
                        time.sleep(0.05)
                    yield f"{word} "
            case "gate":
                yield "before "
                _wait_for_gate(rest, cancelled)
                yield "after "
            case "lines":
                for number in range(1, 19):
                    if number == 10:
                        _wait_for_gate(rest, cancelled)
                    yield f"line {number}\n"
            case "forever":
                number = 0
                while not cancelled():
                    number += 1
                    yield f"tick-{number} "
                    time.sleep(0.002)
            case "hang":
                while not cancelled():
                    time.sleep(0.002)
            case "crash":
                yield "one "
                yield "two "
                time.sleep(1)  # both words are to be on their way before the process is gone
                os._exit(9)
            case "oom":
                raise EngineError(
                    "The memory does not suffice for this answer: attach fewer pictures."
                )
            case "too-long":
                raise TooLongError("The last message takes 9 tokens, and scenes has room for 8.")
            case "fail-late":
                yield "one "
                raise EngineError("The model failed in mid-answer.")
            case "bug":
                raise RuntimeError("a bug in decoding")
            case "echo-images":
                yield f"{len(pictures)} pictures: "
                for picture in pictures:
                    yield f"{picture.sha256} "
            case "echo-options":
                yield msgspec.json.encode(options).decode()
            case "echo-turns":
                for turn in turns:
                    yield f"{_shown(turn)}\n"
            case "unicode":
                yield from ("a", "é", "e\u0301", "漢", "😀", "👨\u200d👩\u200d👧", "\u2028", "end")
            case "escape":
                yield "\x1b]52;c;aGFja2Vk\x07"
                yield "\x1b[31mred\x1b[0m"
            case "pid":
                yield str(os.getpid())
            case _:
                count = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
                for word in f"I see {count}. You said: {command}".split(" "):
                    yield f"{word} "


def create_backend() -> ScriptedBackend:
    return ScriptedBackend()
