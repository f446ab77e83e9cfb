"""What the backend keeps of the last conversation, and everything after which it must not be used."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.client.protocol import Delta, Done, Options
from mmchat.engine.backend import TorchBackend
from mmchat.engine.service import Service
from mmchat.engine.worker import ModelChoice, Worker
from mmchat.errors import AdapterError, EngineError
from mmchat.turns import ImagePart, Turn
from tests.engine.backends import (
    KINDS,
    adapter,
    continued,
    folder,
    loaded_backend,
    one_thread,
    part,
    seeing,
    turns,
    vivid,
)

__all__ = ["adapter", "folder", "one_thread", "seeing"]

QUESTION = "look at this picture and that one: how many are there? "


def reply(conversation: tuple[Turn, ...], text: str, *parts: str | ImagePart) -> tuple[Turn, ...]:
    return (*conversation, Turn("assistant", (text,)), Turn("user", parts))


def compared(
    backend: TorchBackend, conversation: tuple[Turn, ...], **options: Any
) -> tuple[str, int]:
    """The answer from what is kept, which is the one from nothing; and how many tokens were kept."""
    options = {"max_tokens": 10, **options}
    warm, done = continued(backend, conversation, **options)
    kept, backend._prefix._state = backend._prefix._state, None
    cold, fresh = continued(backend, conversation, **options)
    backend._prefix._state = kept
    assert warm == cold
    assert fresh.cached_tokens == 0
    assert done.prompt_tokens == fresh.prompt_tokens > done.cached_tokens
    return warm, done.cached_tokens


@pytest.mark.parametrize("kind", [*KINDS, "llama"])
def test_every_kind_goes_on_from_its_last_answer(kind: str, folder: Callable[[str], Path]) -> None:
    backend = vivid(loaded_backend(folder(kind)))
    first = turns(QUESTION) if kind == "llama" else turns(QUESTION, part())
    text, cached = compared(backend, first)
    assert cached == 0
    _, cached = compared(backend, reply(first, text, "what colour is the circle? "))
    # Gemma 3 cannot go back behind its window, and the answer's bytes may be other tokens when read.
    if kind != "gemma3":
        _, done = continued(backend, first, max_tokens=1)
        assert cached >= done.prompt_tokens - 1


@pytest.fixture
def asked(seeing: TorchBackend) -> tuple[Turn, ...]:
    """A conversation whose last turn is to be answered, and whose first turn `seeing` has answered."""
    first = turns(QUESTION, part())
    text, _ = continued(seeing, first, max_tokens=10)
    return reply(first, text, "what colour is the circle? ")


def test_an_edited_message_and_another_picture_are_read_anew(
    seeing: TorchBackend, asked: tuple[Turn, ...]
) -> None:
    _, whole = compared(seeing, asked)
    edited = (*turns(QUESTION, part(), "?"), *asked[1:])
    other = (*turns(QUESTION, part(1)), *asked[1:])
    assert 0 < compared(seeing, edited)[1] < whole
    compared(seeing, asked)
    assert 0 < compared(seeing, other)[1] < whole
    assert compared(seeing, turns(part(1), "is it red? "))[1] == 0


def test_an_adapter_never_goes_on_from_anothers_state(
    seeing: TorchBackend, asked: tuple[Turn, ...], adapter: Path
) -> None:
    base, cached = compared(seeing, asked)
    assert cached > 0
    seeing.use_adapter(str(adapter))
    other, cached = compared(seeing, asked)
    assert (other != base, cached) == (True, 0)
    assert compared(seeing, asked)[1] > 0
    # The same name, trained on since.
    file = adapter / "projector.safetensors"
    save_file({name: value * -2 for name, value in load_file(file).items()}, file)
    seeing.use_adapter(str(adapter))
    assert compared(seeing, asked)[1] == 0
    # A switch that fails changes nothing, and neither does one there and back without an answer.
    with pytest.raises(AdapterError):
        seeing.use_adapter("no-such-adapter")
    seeing.use_adapter("")
    seeing.use_adapter(str(adapter))
    assert compared(seeing, asked)[1] > 0
    seeing.use_adapter("")
    assert compared(seeing, asked) == (base, 0)


def test_a_load_gives_the_memory_back_before_it_looks_for_room(
    seeing: TorchBackend,
    asked: tuple[Turn, ...],
    folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mmchat.engine import backend as module

    assert seeing._prefix._state is not None
    state = weakref.ref(seeing._prefix._state)
    plan_load = module.plan_load

    def planned(*arguments: Any, **options: Any) -> Any:
        assert state() is None
        return plan_load(*arguments, **options)

    monkeypatch.setattr(module, "plan_load", planned)
    seeing.load(str(folder("llama")), "", "fp32", "cpu", lambda *_: None)
    llama = turns(QUESTION)
    assert compared(seeing, llama)[1] == 0
    assert compared(seeing, llama)[1] > 0
    seeing.load(str(folder("visual_prefix")), "", "fp32", "cpu", lambda *_: None)
    assert compared(seeing, asked)[1] == 0


@pytest.mark.parametrize("client_is_gone", [True, False])
def test_a_stop_in_mid_answer_goes_on_from_what_was_written(
    seeing: TorchBackend, client_is_gone: bool
) -> None:
    first = turns(QUESTION, part())
    stop = [False]
    events = seeing.generate(first, Options(max_tokens=40), lambda: stop[0])
    written = ""
    for event in events:
        if isinstance(event, Delta):
            written += event.text
            if len(written) > 5:
                break
    if client_is_gone:
        events.close()  # type: ignore[attr-defined]
    else:
        stop[0] = True
        assert isinstance(list(events)[-1], Done)
    assert seeing._prefix._state is not None
    cancelled_at = seeing._prefix._state.length
    _, cached = compared(seeing, reply(first, written, "go on? "))
    _, prompt = continued(seeing, first, max_tokens=1)
    assert prompt.prompt_tokens - 1 <= cached <= cancelled_at


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), RuntimeError("out of memory"), MemoryError()]
)
@pytest.mark.parametrize("place", ["prefill", "step"])
def test_after_a_failure_nothing_is_reused(
    seeing: TorchBackend,
    asked: tuple[Turn, ...],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
) -> None:
    runner = seeing._runner
    assert runner is not None
    read = runner._read
    calls = []

    def failing(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        logits = read(*arguments)  # the tokens are in the cache, and not in the keys
        if place == "prefill" or len(calls) > 3:
            raise error
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_read", failing)
        with pytest.raises((EngineError, RuntimeError)):
            continued(seeing, asked, max_tokens=10)
    assert compared(seeing, asked)[1] == 0


def test_the_same_seed_starts_anew(seeing: TorchBackend, asked: tuple[Turn, ...]) -> None:
    seeded = {"temperature": 1.5, "seed": 3, "max_tokens": 12}
    first, done = continued(seeing, asked, **seeded)
    assert done.cached_tokens == 0
    again, done = continued(seeing, asked, **seeded)
    assert (again, done.cached_tokens) == (first, 0)
    assert continued(seeing, asked)[1].cached_tokens > 0


async def test_usage_reports_the_cached_tokens(folder: Callable[[str], Path]) -> None:
    model = str(folder("visual_prefix"))
    worker = Worker(TorchBackend, ModelChoice(model, "", "fp32", "cpu"), "engine.log")
    service = Service(worker, Options(max_tokens=8), lambda: None, "engine.log")
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        messages = [{"role": "user", "content": QUESTION}]
        for turn in range(2):
            reply = await client.post("/v1/chat/completions", json={"messages": messages})
            body = reply.json()
            cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert cached == body["x_mmchat"]["cached_tokens"]
            assert (cached > 0) == (turn > 0)
            assert cached < body["usage"]["prompt_tokens"]
            answer = body["choices"][0]["message"]
            messages += [answer, {"role": "user", "content": "is it red?"}]
    worker.close()
    assert worker.join(30)
