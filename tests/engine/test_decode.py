"""Our loop against `generate()` on the same weights, over every architecture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmchat.engine.decode import Decoding, TransformersRunner, VisionCache, VisualPrefixRunner
from mmchat.engine.detokenize import StopStrings
from mmchat.engine.sampling import Sampler
from tests.engine.tiny_models import (
    IMAGE,
    RECURRENT_NAMES,
    STOCK,
    TEXT_NAMES,
    TinyPrompt,
    text_model,
    text_prompt,
    visual_prefix_model,
    visual_prefix_prompt,
)

NEW_TOKENS = 12


class Letters:
    """A tokenizer of one letter a token."""

    def push(self, token: int) -> str:
        return chr(0x4E00 + token)

    def finish(self) -> str:
        return ""


class Recorded(Sampler):
    """Greedy, and keeps the logits it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Tensor] = []

    def next(self, logits: Tensor) -> int:
        self.rows.append(logits)
        return super().next(logits)


def ours(runner: TransformersRunner, prompt: TinyPrompt) -> tuple[list[int], Tensor]:
    state = runner.start()
    prefilled = runner.prefill(state, prompt, lambda: False)
    assert prefilled is not None
    sampler = Recorded()
    decoding = Decoding(
        runner,
        state,
        prefilled.logits,
        sampler=sampler,
        detokenizer=Letters(),
        stops=StopStrings(()),
        eos_token_ids=frozenset(),
        max_tokens=NEW_TOKENS,
    )
    text = "".join(decoding)
    assert [ord(letter) - 0x4E00 for letter in text] == decoding.tokens
    assert decoding.finish_reason == "length"
    assert state.length == prompt.input_ids.shape[1] + NEW_TOKENS - 1
    return decoding.tokens, torch.stack(sampler.rows)


def theirs(model: Any, prompt: TinyPrompt, **extra: Tensor) -> tuple[list[int], Tensor]:
    output = model.generate(
        input_ids=prompt.input_ids,
        attention_mask=torch.ones_like(prompt.input_ids),
        **prompt.model_inputs,
        **extra,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[0, prompt.input_ids.shape[1] :].tolist()
    return tokens, torch.cat(output.logits)


def assert_equal(mine: tuple[list[int], Tensor], reference: tuple[list[int], Tensor]) -> None:
    assert mine[0] == reference[0]
    assert torch.equal(mine[1], reference[1])
    assert len(set(mine[0])) > 2  # an answer of one token over and over would prove nothing


def assert_close(mine: tuple[list[int], Tensor], reference: tuple[list[int], Tensor]) -> None:
    """|Δlogit| ≤ 1e-4, and equal tokens as long as the top two differ by more."""
    for step, (row, wanted) in enumerate(zip(mine[1], reference[1], strict=True)):
        assert (row - wanted).abs().max() <= 1e-4
        if mine[0][step] != reference[0][step]:
            first, second = wanted.topk(2).values
            assert first - second <= 1e-4
            return


def visual_prefix_runner(model: Any, **options: Any) -> VisualPrefixRunner:
    return VisualPrefixRunner(model, vision_hash=lambda: "w", vision=VisionCache(), **options)


@pytest.mark.parametrize("name", [*TEXT_NAMES, *RECURRENT_NAMES])
def test_text_models_equal_generate_bit_for_bit(name: str) -> None:
    model = text_model(name)
    runner = TransformersRunner(model)
    for seed, length in [(0, 13), (1, 3), (2, 40)]:  # sliding windows are 8
        prompt = text_prompt(seed, length)
        assert_equal(ours(runner, prompt), theirs(model, prompt))
    assert ours(runner, text_prompt(0))[0] != ours(runner, text_prompt(1))[0]


@pytest.mark.parametrize("name", [*TEXT_NAMES, *RECURRENT_NAMES])
@pytest.mark.parametrize("chunk", [1, 7])
def test_a_prefill_in_chunks_gives_the_same_logits(name: str, chunk: int) -> None:
    model = text_model(name)
    prompt = text_prompt(3, 30)
    assert_close(ours(TransformersRunner(model, chunk=chunk), prompt), theirs(model, prompt))


@pytest.mark.parametrize("text", ["llama", "qwen3", "gemma2"])
def test_the_visual_prefix_model_equals_generate_bit_for_bit(text: str) -> None:
    model = visual_prefix_model(text)
    runner = visual_prefix_runner(model)
    prompt = visual_prefix_prompt()
    answer = ours(runner, prompt)
    assert_equal(answer, theirs(model, prompt))
    assert_equal(ours(runner, prompt), answer)  # now with the features from the cache
    assert answer[0] != ours(runner, visual_prefix_prompt(picture_seeds=(1,)))[0]
    assert answer[0] != ours(runner, visual_prefix_prompt(text_seed=7))[0]
    assert_equal(ours(runner, text_prompt()), theirs(model, text_prompt()))


@pytest.mark.parametrize("chunk", [256, 9])  # a chunk's border falls into a picture
def test_several_pictures_in_chunks_and_from_the_cache(chunk: int) -> None:
    model = visual_prefix_model()
    runner = visual_prefix_runner(model, chunk=chunk)
    for seeds in [(0, 1), (1, 0, 1)]:
        prompt = visual_prefix_prompt(picture_seeds=seeds)
        assert_close(ours(runner, prompt), theirs(model, prompt))
    swapped = visual_prefix_prompt(picture_seeds=(1, 0))
    assert ours(runner, swapped)[0] != ours(runner, visual_prefix_prompt(picture_seeds=(0, 1)))[0]


@pytest.mark.parametrize("name", STOCK)
def test_stock_models_equal_generate_bit_for_bit(name: str) -> None:
    stock = STOCK[name]
    model = stock.make()
    runner = TransformersRunner(model)

    def reference(prompt: TinyPrompt) -> tuple[list[int], Tensor]:
        types = (prompt.input_ids == IMAGE).long()
        return theirs(model, prompt, **({stock.token_types: types} if stock.token_types else {}))

    one, two = stock.prompt(), stock.prompt(picture_seeds=(0, 3))
    answer = ours(runner, one)
    assert_equal(answer, reference(one))
    assert_equal(ours(runner, two), reference(two))
    assert answer[0] != ours(runner, stock.prompt(picture_seeds=(1,)))[0]
    assert answer[0] != ours(runner, stock.prompt(text_seed=7))[0]
    assert_equal(ours(runner, text_prompt()), reference(text_prompt()))


def test_conversations_of_qwen_vl_do_not_meet_on_the_module() -> None:
    model = STOCK["qwen2_vl"].make()
    runner = TransformersRunner(model)
    prompt, other = STOCK["qwen2_vl"].prompt(), STOCK["qwen2_vl"].prompt(picture_seeds=(1, 2))
    expected = ours(runner, prompt)[0]
    state, second = runner.start(), runner.start()
    first = runner.prefill(state, prompt, lambda: False)
    assert first is not None
    tokens, logits = [], first.logits
    for step in range(NEW_TOKENS):
        tokens.append(int(logits.argmax()))
        if step == 4:
            runner.prefill(second, other, lambda: False)
        logits = runner.step(state, tokens[-1])
    assert tokens == expected
    assert model.model.rope_deltas is None
    assert state.position_shift < 0 and second.position_shift < state.position_shift


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_truncated_state_goes_on_as_if_nothing_had_come_between(name: str) -> None:
    model = text_model(name)
    runner = TransformersRunner(model)
    prompt = text_prompt(0, 5)
    state, other = runner.start(), runner.start()
    prefilled = runner.prefill(state, prompt, lambda: False)
    assert prefilled is not None
    token = int(prefilled.logits.argmax())
    runner.prefill(other, prompt, lambda: False)
    expected = runner.step(other, token)
    assert state.length == 5
    runner.step(state, 7)
    runner.step(state, 8)  # 7 tokens: the window of 8 is not full yet
    assert state.truncate(5)
    assert state.keys == prompt.keys
    assert torch.allclose(runner.step(state, token), expected, atol=1e-5)
    assert not state.truncate(99)


def test_a_window_that_has_moved_on_cannot_be_truncated() -> None:
    runner = TransformersRunner(text_model("mistral"))
    state = runner.start()
    runner.prefill(state, text_prompt(0, 20), lambda: False)
    assert not state.truncate(10)
    assert state.length == 20


def test_a_prefill_goes_on_from_what_the_state_holds() -> None:
    model = visual_prefix_model()
    runner = visual_prefix_runner(model)
    prompt = visual_prefix_prompt(picture_seeds=(0, 1))
    whole = runner.prefill(runner.start(), prompt, lambda: False)
    for known in (3, prompt.images[0].start + 4, prompt.images[1].start, 30):
        state = runner.start()
        runner.prefill(state, prompt, lambda: False)
        assert state.truncate(known)
        rest = runner.prefill(state, prompt, lambda: False)
        assert whole is not None and rest is not None
        assert torch.allclose(rest.logits, whole.logits, atol=1e-4)
        assert state.keys == prompt.keys


def test_a_cancel_comes_through_within_one_chunk() -> None:
    runner = visual_prefix_runner(visual_prefix_model(), chunk=8)
    prompt = visual_prefix_prompt(picture_seeds=(0, 1))
    total = prompt.input_ids.shape[1]
    for allowed in range(3 + total // 8):
        asked = iter([False] * allowed + [True])
        state = runner.start()
        result = runner.prefill(state, prompt, lambda asked=asked: next(asked, False))  # type: ignore[misc]
        assert result is None
        assert state.length == max(0, allowed - 2) * 8
        assert state.keys == prompt.keys[: state.length]


@pytest.mark.parametrize("name", STOCK)
def test_a_cancel_comes_through_a_stock_models_one_forward(name: str) -> None:
    model = STOCK[name].make()
    runner = TransformersRunner(model)
    prompt = STOCK[name].prompt()
    answer = ours(runner, prompt)
    asked = 0

    def after(allowed: int) -> Callable[[], bool]:
        def cancelled() -> bool:
            nonlocal asked
            asked += 1
            return asked > allowed

        return cancelled

    runner.prefill(runner.start(), prompt, after(10**9))
    whole, asked = asked, 0
    assert whole > 4  # once before, and before the blocks of the tower and of the text
    for allowed in (1, whole // 2, whole - 1):
        assert runner.prefill(runner.start(), prompt, after(allowed)) is None
        assert asked == allowed + 1
        asked = 0
    assert_equal(ours(runner, prompt), answer)
    assert not any(module._forward_pre_hooks for module in model.modules())


def decoding(max_tokens: int = 8, **options: Any) -> tuple[Decoding, list[int]]:
    runner = TransformersRunner(text_model("llama"))
    tokens, _ = ours(runner, text_prompt())
    state = runner.start()
    prefilled = runner.prefill(state, text_prompt(), lambda: False)
    assert prefilled is not None
    arguments: dict[str, Any] = {
        "sampler": Sampler(),
        "detokenizer": Letters(),
        "stops": StopStrings(()),
        "eos_token_ids": frozenset(),
        "max_tokens": max_tokens,
    }
    return Decoding(runner, state, prefilled.logits, **{**arguments, **options}), tokens


def letters(tokens: list[int]) -> str:
    return "".join(map(Letters().push, tokens))


def test_an_end_token_ends_the_answer_and_has_no_text() -> None:
    _, tokens = decoding()
    answer, _ = decoding(eos_token_ids=frozenset({tokens[3], 9999}))
    end = tokens.index(tokens[3])
    assert "".join(answer) == letters(tokens[:end])
    assert (answer.finish_reason, answer.tokens) == ("stop", tokens[: end + 1])


def test_a_stop_string_over_two_tokens_ends_the_answer() -> None:
    _, tokens = decoding()
    answer, _ = decoding(stops=StopStrings([letters(tokens[2:4])]))
    assert "".join(answer) == letters(tokens[:2])
    assert (answer.finish_reason, len(answer.tokens)) == ("stop", 4)


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    _, tokens = decoding()
    answer, _ = decoding(max_tokens=4, stops=StopStrings([letters([tokens[3], tokens[3], 1])]))
    assert list(answer) == [*map(letters, ([tokens[0]], [tokens[1]], [tokens[2]], [tokens[3]]))]
    assert answer.finish_reason == "length"


def test_a_cancel_stops_at_the_next_token() -> None:
    stop = [False]
    answer, tokens = decoding(cancelled=lambda: stop[0])
    shown = []
    for text in answer:
        shown.append(text)
        stop[0] = len(shown) == 3
    assert ("".join(shown), answer.finish_reason) == (letters(tokens[:3]), "cancelled")
    assert len(answer.tokens) == 3


def test_the_vision_cache_forgets_the_longest_unused() -> None:
    cache = VisionCache(limit=100 * 4)
    for name in "abc":
        cache.put(name, "w", torch.zeros(1, 30))
    assert cache.get("a", "w") is not None
    cache.put("d", "w", torch.zeros(1, 30))
    assert cache.get("b", "w") is None
    assert all(cache.get(name, "w") is not None for name in "acd")
    assert cache.get("a", "other weights") is None
    cache.put("e", "w", torch.zeros(1, 101))
    assert (len(cache), cache.get("e", "w")) == (3, None)
    cache.put("a", "w", torch.ones(1, 40))
    assert len(cache) == 3
    cache.clear()
    assert len(cache) == 0
