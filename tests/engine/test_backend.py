"""The backend through real checkpoints on disk: load, answer, fail, go on."""

import gc
import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.client.protocol import Delta, Done, Options, Started
from mmchat.engine.backend import TorchBackend, create_backend
from mmchat.engine.kv_cache import ConversationState
from mmchat.errors import AdapterError, EngineError, ModelError, ModelNotFoundError
from mmchat.model import load_plan
from mmchat.model.load_plan import is_out_of_memory
from mmchat.prompt.model_inputs import build_prompt
from tests.engine.backends import (
    KINDS,
    adapter,
    answer,
    folder,
    loaded_backend,
    never,
    one_thread,
    part,
    seeing,
    turns,
    vivid,
)
from tests.model import tiny

__all__ = ["adapter", "folder", "one_thread", "seeing"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_as_generate_does(kind: str, folder: Callable[[str], Path]) -> None:
    backend = vivid(loaded_backend(folder(kind)))
    loaded = backend._loaded
    assert loaded is not None
    asked = turns("what is ", part(), " this?")
    prompt = build_prompt(loaded, asked, 10)
    expected = loaded.model.generate(
        prompt.input_ids,
        attention_mask=torch.ones_like(prompt.input_ids),
        **prompt.model_inputs,
        max_new_tokens=10,
        do_sample=False,
    )[0, prompt.input_ids.shape[1] :]
    text, done = answer(backend, "what is ", part(), " this?", max_tokens=10)
    assert text == loaded.tokenizer.decode(expected, skip_special_tokens=True)
    assert (done.finish_reason, done.completion_tokens) == ("length", 10)
    assert done.prompt_tokens == prompt.input_ids.shape[1]
    assert 0 < done.image_tokens == prompt.image_tokens < done.prompt_tokens
    assert min(done.image_ms, done.prefill_ms, done.decode_ms, done.tokens_per_second) > 0
    texts = {
        answer(backend, word, part(seed), max_tokens=10)[0] for word in "ab" for seed in (0, 1)
    }
    assert len(texts) > 2  # words and picture both show


def test_figures_of_done_repeat_those_of_started(seeing: TorchBackend) -> None:
    started, *_, done = seeing.generate(turns("hello"), Options(max_tokens=3), never)
    assert isinstance(started, Started) and isinstance(done, Done)
    for name in Started.__struct_fields__:
        assert getattr(started, name) == getattr(done, name)
    status = seeing.status()
    assert (done.model, done.device, done.quantization) == (status.model, "cpu", "fp32")
    assert (status.compute_dtype, status.vision) == ("float32", True)
    assert status.memory_bytes > 10_000
    assert done.image_ms == 0 and done.image_tokens == 0


def test_four_bit_answers_too(folder: Callable[[str], Path]) -> None:
    backend = loaded_backend(folder("visual_prefix"), "4bit")
    assert backend.status().quantization == "4bit"
    assert answer(backend, part(), "hello", max_tokens=5)[1].quantization == "4bit"


def test_the_same_seed_gives_the_same_answer(seeing: TorchBackend) -> None:
    options = {"temperature": 1.5, "max_tokens": 12}
    first = answer(seeing, part(), "hello", seed=3, **options)[0]
    assert answer(seeing, part(), "hello", seed=3, **options)[0] == first
    assert answer(seeing, part(), "hello", seed=4, **options)[0] != first


def test_stop_string_length_and_context_end_an_answer(seeing: TorchBackend) -> None:
    text, done = answer(seeing, "hello", max_tokens=30)
    assert done.finish_reason == "length"
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    short, done = answer(seeing, "hello", max_tokens=30, stop=(stop,))
    assert (short, done.finish_reason) == (text[: text.index(stop)], "stop")
    assert seeing._loaded is not None
    seeing._loaded.context_length = done.prompt_tokens * 2
    _, done = answer(seeing, "hello", max_tokens=10_000)
    assert (done.finish_reason, done.completion_tokens) == ("length", done.prompt_tokens)


def test_a_cancel_in_the_answer_and_before_it(seeing: TorchBackend) -> None:
    stop = [False]
    events = seeing.generate(turns("hello"), Options(), lambda: stop[0])
    seen = [next(events) for _ in range(4)]
    stop[0] = True
    done = list(events)[-1]
    assert isinstance(done, Done) and isinstance(seen[-1], Delta)
    assert done.finish_reason == "cancelled"
    assert 3 <= done.completion_tokens < 20
    (done,) = seeing.generate(turns(part(7)), Options(), lambda: True)  # before it is decoded
    assert isinstance(done, Done)
    assert (done.finish_reason, done.completion_tokens) == ("cancelled", 0)
    _, done = seeing.generate(turns("hello"), Options(), lambda: True)
    assert isinstance(done, Done)
    assert (done.finish_reason, done.completion_tokens) == ("cancelled", 0)


@pytest.mark.parametrize(
    "bad", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 1.5}]
)
def test_a_wrong_option_is_one_sentence(seeing: TorchBackend, bad: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=f"{next(iter(bad))} is .*, but must be"):
        answer(seeing, "hello", **bad)
    assert answer(seeing, "hello", max_tokens=2)[1].completion_tokens == 2


def test_weights_that_overflow_are_one_sentence(seeing: TorchBackend) -> None:
    assert seeing._loaded is not None
    with torch.no_grad():
        seeing._loaded.model.lm_head.weight[5] = math.nan
    with pytest.raises(EngineError, match=r"logits are not finite.*without an adapter"):
        answer(seeing, "hello")


def allocate_too_much() -> None:
    torch.empty(2**50)


def test_the_real_allocators_words_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        allocate_too_much()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError()) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_out_of_memory_in_mid_answer_frees_it_and_the_next_request_works(
    seeing: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = seeing._runner
    assert runner is not None
    states: list[weakref.ref[ConversationState]] = []
    start, step = runner.start, runner.step

    def watched() -> ConversationState:
        state = start()
        states.append(weakref.ref(state))
        return state

    def failing(state: ConversationState, token: int) -> torch.Tensor:
        if state.length > 20:
            allocate_too_much()
        return step(state, token)

    monkeypatch.setattr(runner, "start", watched)
    monkeypatch.setattr(runner, "step", failing)
    shown = []
    try:
        for event in seeing.generate(turns("hello"), Options(), never):
            shown.append(event)
    except EngineError as error:
        assert "Out of memory while answering" in str(error)
        assert [state() for state in states] == [None]  # freed while the error is still held
    else:
        raise AssertionError("no error")
    assert any(isinstance(event, Delta) for event in shown)
    monkeypatch.undo()
    assert answer(seeing, "hello", max_tokens=2)[1].completion_tokens == 2


def test_nothing_loaded_is_one_sentence() -> None:
    backend = TorchBackend()
    assert backend.status().model == ""
    with pytest.raises(EngineError, match="No model is loaded"):
        next(backend.generate(turns("hello"), Options(), never))
    with pytest.raises(EngineError, match="No model is loaded"):
        backend.use_adapter("x")


def load(backend: TorchBackend, model: Path | str, progress: Any = None) -> None:
    backend.load(str(model), "", "fp32", "cpu", progress or (lambda stage, fraction: None))


def test_a_misspelt_name_keeps_the_loaded_model(seeing: TorchBackend) -> None:
    _, before = answer(seeing, "hello, is it a circle?", max_tokens=2)
    with pytest.raises(ModelNotFoundError):
        load(seeing, "no-such-model")
    _, done = answer(seeing, "hello, is it a circle?", max_tokens=2)
    assert done.completion_tokens == 2
    assert done.cached_tokens == before.prompt_tokens - 1  # its last conversation, too


def test_loading_replaces_and_frees(seeing: TorchBackend, folder: Callable[[str], Path]) -> None:
    assert seeing._loaded is not None
    old = weakref.ref(seeing._loaded.model)
    load(seeing, folder("llama"))
    gc.collect()
    assert old() is None
    assert not seeing.status().vision
    with pytest.raises(ModelError, match="reads text only"):
        answer(seeing, part(), "hello")
    assert answer(seeing, "hello", max_tokens=3)[1].completion_tokens > 0


def test_what_can_be_found_wrong_beforehand_keeps_the_loaded_model(
    seeing: TorchBackend,
    folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = tiny.build("llama", tmp_path / "damaged")
    for file in damaged.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cut short"):
        load(seeing, damaged)
    with pytest.raises(AdapterError, match="no adapter"):
        seeing.load(str(folder("llama")), "nowhere", "fp32", "cpu", lambda *_: None)
    monkeypatch.setattr(load_plan, "available_memory", lambda: 0)
    with pytest.raises(ModelError, match="of memory"):
        load(seeing, folder("llama"))
    assert answer(seeing, part(), "hello", max_tokens=2)[1].completion_tokens == 2


def test_a_checkpoint_that_breaks_as_it_loads_leaves_nothing_and_the_next_load_works(
    seeing: TorchBackend, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    incomplete = tiny.build("llama", tmp_path / "incomplete")
    config = incomplete / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="incomplete"):
        load(seeing, incomplete)
    assert seeing.status().model == ""
    load(seeing, folder("llama"))
    assert answer(seeing, "hello", max_tokens=3)[1].completion_tokens > 0


def test_files_that_were_replaced_are_noticed(seeing: TorchBackend, tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "trained")
    load(seeing, folder)
    before = seeing.status().weights_hash
    assert seeing.is_current()
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors")
    assert not seeing.is_current()
    load(seeing, folder)
    assert seeing.is_current()
    assert seeing.status().weights_hash not in ("", before)


def test_out_of_memory_while_loading_is_said_as_that(
    seeing: TorchBackend, folder: Callable[[str], Path]
) -> None:
    def progress(stage: str, fraction: float) -> None:
        if fraction > 0.3:
            allocate_too_much()

    with pytest.raises(EngineError, match="Out of memory while loading"):
        load(seeing, folder("llava"), progress)
    assert seeing.status().model == ""
    load(seeing, folder("llama"))
    assert answer(seeing, "hello", max_tokens=3)[1].completion_tokens > 0


class GivenUp(BaseException):
    pass


@pytest.mark.parametrize("form", ["fp32", "4bit"])
def test_a_load_that_is_given_up_leaves_nothing_and_the_next_one_works(
    seeing: TorchBackend, folder: Callable[[str], Path], form: str
) -> None:
    def progress(stage: str, fraction: float) -> None:
        if fraction > 0.3:
            raise GivenUp

    with pytest.raises(GivenUp):
        seeing.load(str(folder("llava")), "", form, "cpu", progress)
    assert seeing.status().model == ""
    load(seeing, folder("llama"))
    assert answer(seeing, "hello", max_tokens=3)[1].completion_tokens > 0


def test_switching_adapters_changes_the_answer_and_never_reads_a_picture_again(
    seeing: TorchBackend, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = seeing._loaded
    assert loaded is not None
    read: list[int] = []
    encode = loaded.model.encode_images

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        read.append(len(pixels))
        result: torch.Tensor = encode(pixels)
        return result

    monkeypatch.setattr(loaded.model, "encode_images", counted)
    base, _ = answer(seeing, part(), "hello", max_tokens=12)
    seeing.use_adapter(str(adapter))
    other, done = answer(seeing, part(), "hello", max_tokens=12)
    assert other != base
    assert done.adapter == str(adapter) and len(done.adapter_hash) == 64
    seeing.use_adapter("")
    assert answer(seeing, part(), "hello", max_tokens=12)[0] == base
    assert read == [1]
    answer(seeing, part(1), part(), "hello", max_tokens=2)
    assert read == [1, 1]


def test_an_adapter_that_was_trained_on_is_noticed_and_read_again_without_its_base(
    seeing: TorchBackend, adapter: Path
) -> None:
    loaded = seeing._loaded
    seeing.use_adapter(str(adapter))
    assert seeing.is_current() and seeing.adapter_is_current()
    before, first = answer(seeing, part(), "hello", max_tokens=12)
    file = adapter / "projector.safetensors"
    save_file({name: value * -2 for name, value in load_file(file).items()}, file)
    assert seeing.is_current() and not seeing.adapter_is_current()
    seeing.use_adapter(str(adapter))
    assert seeing.adapter_is_current() and seeing._loaded is loaded
    after, second = answer(seeing, part(), "hello", max_tokens=12)
    assert after != before and first.adapter_hash != second.adapter_hash
    seeing.use_adapter("")
    assert seeing.adapter_is_current()


def test_an_unknown_adapter_changes_nothing(seeing: TorchBackend) -> None:
    before = answer(seeing, part(), "hello", max_tokens=8)[0]
    with pytest.raises(AdapterError):
        seeing.use_adapter("no-such-adapter")
    assert answer(seeing, part(), "hello", max_tokens=8)[0] == before


def test_threads_are_left_alone_where_the_environment_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    create_backend()
    assert torch.get_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    try:
        create_backend()
        assert torch.get_num_threads() >= 1
    finally:
        torch.set_num_threads(1)
