"""The kept state of the last conversation: the same answers as without it, for every architecture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mmchat.engine.decode import TransformersRunner, VisionCache, VisualPrefixRunner
from mmchat.engine.kv_cache import CacheKey, common_prefix
from mmchat.engine.prefix_cache import MIN_REUSED, PrefixCache
from tests.engine.tiny_models import (
    IMAGE,
    RECURRENT_NAMES,
    SLIDING_NAMES,
    STOCK,
    TEXT_NAMES,
    TinyPrompt,
    text_model,
    text_prompt,
    visual_prefix_model,
    visual_prefix_prompt,
)

DTYPES = [torch.float32, torch.bfloat16]
NEW_TOKENS = 12
BASE = ("weights", "")


@dataclass
class Answer:
    cached: int
    tokens: list[int]
    logits: Tensor
    """(tokens, vocab) float32, those that each token was chosen from."""


def answer(
    runner: TransformersRunner,
    prompt: TinyPrompt,
    cache: PrefixCache | None = None,
    weights: tuple[str, ...] = BASE,
) -> Answer:
    """Greedy, from what `cache` holds; by default from nothing."""
    cache = cache or PrefixCache()
    state = cache.resume(runner, prompt, weights)
    cached = state.length
    tokens: list[int] = []
    rows: list[Tensor] = []
    with cache.keeping(state, weights):
        prefilled = runner.prefill(state, prompt, lambda: False)
        assert prefilled is not None
        assert state.keys == prompt.keys
        rows.append(prefilled.logits)
        while True:
            tokens.append(int(rows[-1][: IMAGE - 1].argmax()))  # no placeholder of a picture
            if len(tokens) == NEW_TOKENS:
                break
            rows.append(runner.step(state, tokens[-1]))
    return Answer(cached, tokens, torch.stack(rows))


def rounding(runner: TransformersRunner) -> float:
    """What a logit may differ by: 1e-4 in fp32; in bf16 it is measured.

    There the same tokens are read one by one instead of in chunks. Some processors round alike in
    both, so four times bf16's own step at the highest logit is the least.
    """
    if runner.model.dtype == torch.float32:
        return 1e-4
    prompt = text_prompt(0, 30)
    cold = answer(runner, prompt)
    state = runner.start()
    rows = [runner.step(state, token) for token in prompt.input_ids[0].tolist()]
    rows += [runner.step(state, token) for token in cold.tokens[:-1]]
    measured = (torch.stack(rows[-NEW_TOKENS:]) - cold.logits).abs().max()
    return max(4 * float(measured), float(cold.logits.abs().max()) / 64)


class Asked:
    """Answers from what is kept, each compared with one from nothing."""

    def __init__(self, runner: TransformersRunner) -> None:
        self.runner = runner
        self.cache = PrefixCache()
        self._allowed = rounding(runner)

    def __call__(self, prompt: TinyPrompt) -> Answer:
        cold, warm = answer(self.runner, prompt), answer(self.runner, prompt, self.cache)
        assert cold.cached == 0
        for step, (row, wanted) in enumerate(zip(warm.logits, cold.logits, strict=True)):
            assert (row - wanted).abs().max() <= self._allowed
            if warm.tokens[step] != cold.tokens[step]:
                first, second = wanted[: IMAGE - 1].topk(2).values
                assert first - second <= 2 * self._allowed
                break
        return warm


def followed_by(prompt: TinyPrompt, more: Sequence[int]) -> TinyPrompt:
    ids = torch.cat([prompt.input_ids, torch.tensor([list(more)])], dim=1)
    return TinyPrompt(ids, prompt.model_inputs, prompt.images)


def words(seed: int, count: int = 7) -> list[int]:
    found: list[int] = text_prompt(seed, count).input_ids[0].tolist()
    return found


def milder(model: Any) -> Any:
    """With smaller weights: rounding in fp32 is far below 1e-4 then, on every processor."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7)
    return model


def runner_of(model: Any, dtype: torch.dtype) -> TransformersRunner:
    return TransformersRunner(milder(model).to(dtype), chunk=9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*TEXT_NAMES, *RECURRENT_NAMES])
def test_a_conversation_goes_on_as_from_nothing(name: str, dtype: torch.dtype) -> None:
    ask = Asked(runner_of(text_model(name), dtype))
    kept = name not in RECURRENT_NAMES
    can_go_back = kept and name not in SLIDING_NAMES
    first = text_prompt(0, 30)
    told = ask(first)
    assert told.cached == 0
    second = followed_by(first, [*told.tokens, *words(1)])
    # All but the last token of the answer, which was drawn and never read.
    assert ask(second).cached == (30 + NEW_TOKENS - 1 if kept else 0)
    # The same again: only the last token is read anew.
    length = second.input_ids.shape[1]
    assert ask(second).cached == (length - 1 if can_go_back else 0)
    # Another second message, as after an edit or on another branch.
    edited = followed_by(first, [*told.tokens, *words(2)])
    assert ask(edited).cached == (30 + NEW_TOKENS if can_go_back else 0)
    # The first message is edited.
    earlier = TinyPrompt(torch.tensor([[*first.input_ids[0, :20], *words(3, 25)]]))
    assert ask(earlier).cached == (20 if can_go_back else 0)
    assert ask(text_prompt(9, 30)).cached == 0


def test_a_wrong_state_would_be_noticed() -> None:
    """The allowed differences are far below those of an answer from another conversation."""
    for dtype in DTYPES:
        runner = runner_of(text_model("llama"), dtype)
        prompt = text_prompt(0, 30)
        cold = answer(runner, prompt)
        other = answer(
            runner,
            TinyPrompt(torch.cat([text_prompt(5, 15).input_ids, prompt.input_ids[:, 15:]], 1)),
        )
        difference = float((cold.logits[0] - other.logits[0]).abs().max())
        assert difference > 10 * rounding(runner)


@dataclass(frozen=True)
class Family:
    """A model that sees, and how its prompts are made."""

    runner: Callable[[torch.dtype], TransformersRunner]
    prompt: Callable[..., TinyPrompt]
    can_go_back: bool = True
    goes_on_with_pictures: bool = False


def visual_prefix(text: str) -> Callable[[torch.dtype], TransformersRunner]:
    def make(dtype: torch.dtype) -> TransformersRunner:
        model = milder(visual_prefix_model(text)).to(dtype)
        return VisualPrefixRunner(model, vision_hash=lambda: "w", vision=VisionCache(), chunk=9)

    return make


def stock(name: str) -> Callable[[torch.dtype], TransformersRunner]:
    return lambda dtype: runner_of(STOCK[name].make(), dtype)


SEEING = {
    "visual_prefix_llama": Family(visual_prefix("llama"), visual_prefix_prompt, True, True),
    "visual_prefix_gemma2": Family(visual_prefix("gemma2"), visual_prefix_prompt, False, True),
    **{name: Family(stock(name), STOCK[name].prompt, name != "gemma3") for name in STOCK},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SEEING)
def test_a_conversation_about_pictures_goes_on_as_from_nothing(
    name: str, dtype: torch.dtype
) -> None:
    family = SEEING[name]
    ask = Asked(family.runner(dtype))
    first = family.prompt(text_length=20)
    told = ask(first)
    length = first.input_ids.shape[1]
    more = [*told.tokens, *words(1)]
    second = family.prompt(text_length=20, more=more)
    assert ask(second).cached == length + NEW_TOKENS - 1
    # Other words after the picture.
    edited = family.prompt(text_length=20, more=[*told.tokens, *words(2)])
    kept = length + NEW_TOKENS if family.can_go_back else 0
    assert ask(edited).cached == kept
    # Another picture: the same token ids.
    other = family.prompt(text_length=20, more=more, picture_seeds=(1,))
    assert other.input_ids.tolist() == second.input_ids.tolist()
    start = first.images[0].start
    kept = start if family.can_go_back and family.goes_on_with_pictures else 0
    assert ask(other).cached == kept
    # One more picture after it, one before it, one between the two, and without the last.
    before = other
    for seeds in [(1, 2), (3, 1, 2), (3, 4, 1), (3, 4)]:
        several = family.prompt(text_length=20, more=more, picture_seeds=seeds)
        pairs = zip(several.keys, before.keys, strict=False)
        same = next(place for place, (one, another) in enumerate(pairs) if one != another)
        kept = same if family.can_go_back and family.goes_on_with_pictures else 0
        assert ask(several).cached == kept
        before = several
    # Nothing but words, which the last conversation begins with too.
    plain = TinyPrompt(torch.tensor([[*first.input_ids[0, :20], *words(4)]]))
    assert ask(plain).cached == (20 if family.can_go_back else 0)


def test_pictures_that_a_processor_prepares_together_are_read_together() -> None:
    """Some processors cut a picture by the number of all: one that is left alone is not the same."""
    ask = Asked(stock("llava")(torch.float32))
    prompt = STOCK["llava"].prompt
    ask(prompt(text_length=20, picture_seeds=(0, 1)))
    alone = prompt(text_length=20, picture_seeds=(0,))
    assert ask(alone).cached == 0


@pytest.mark.parametrize(
    ("read", "prompt", "shared"),
    [
        ("", "abc", 0),
        ("abc", "abd", 2),
        ("abc", "abcd", 3),
        ("abcd", "abc", 2),  # the last one is read for its logits
        ("abAAc", "abAAd", 4),
        ("abAAc", "abBBc", 2),
        ("abAAAc", "abAAc", 2),  # the same picture in another number of tokens
        ("abAAc", "abAAAc", 2),
        ("abA", "abAAc", 2),  # read up to the middle of a picture
        ("abAA", "abAAc", 4),
        ("AAc", "AAd", 2),
    ],
)
def test_a_prefix_ends_before_what_differs_and_never_in_a_picture(
    read: str, prompt: str, shared: int
) -> None:
    """Small letters are tokens, capitals the tokens of a picture of that name."""

    def keys(text: str) -> list[CacheKey]:
        return [(0, letter) if letter.isupper() else (ord(letter), None) for letter in text]

    assert common_prefix(keys(read), keys(prompt)) == shared


def test_few_shared_tokens_are_read_again() -> None:
    ask = Asked(runner_of(text_model("llama"), torch.float32))
    ids = text_prompt(0, 30).input_ids[0].tolist()
    for shared in (MIN_REUSED - 1, MIN_REUSED):
        ask(TinyPrompt(torch.tensor([ids])))
        prompt = TinyPrompt(torch.tensor([[*ids[:shared], *words(shared, 20)]]))
        assert ask(prompt).cached == (shared if shared >= MIN_REUSED else 0)


def test_a_state_of_other_weights_is_never_used() -> None:
    runner, cache = runner_of(text_model("llama"), torch.float32), PrefixCache()
    prompt = text_prompt(0, 30)
    answer(runner, prompt, cache, ("weights", ""))
    assert answer(runner, prompt, cache, ("weights", "adapter")).cached == 0
    assert answer(runner, prompt, cache, ("weights", "adapter")).cached == 29
    assert answer(runner, prompt, cache, ("other weights", "adapter")).cached == 0


class BrokenError(Exception):
    pass


def test_a_failure_in_a_forward_drops_the_state() -> None:
    ask = Asked(runner_of(text_model("llama"), torch.float32))
    runner, cache = ask.runner, ask.cache
    prompt = text_prompt(0, 30)
    second_layer = runner.model.model.layers[1]

    def fail(*_: object) -> None:
        raise BrokenError

    answer(runner, prompt, cache)
    handle = second_layer.register_forward_pre_hook(fail)
    with pytest.raises(BrokenError):  # the first layer has read the tokens, the second has not
        answer(runner, followed_by(prompt, words(1)), cache)
    handle.remove()
    assert ask(followed_by(prompt, words(1))).cached == 0


def test_a_closed_answer_keeps_the_state() -> None:
    ask = Asked(runner_of(text_model("llama"), torch.float32))
    runner, cache = ask.runner, ask.cache
    prompt = text_prompt(0, 30)

    def tokens() -> Iterator[int]:
        state = cache.resume(runner, prompt, BASE)
        with cache.keeping(state, BASE):
            prefilled = runner.prefill(state, prompt, lambda: False)
            assert prefilled is not None
            logits = prefilled.logits
            while True:
                yield int(logits.argmax())
                logits = runner.step(state, int(logits.argmax()))

    running = tokens()
    seen = [next(running) for _ in range(4)]
    running.close()
    warm = ask(followed_by(prompt, [*seen, *words(1)]))
    assert warm.cached == 30 + 3


def test_a_prefill_cancelled_between_two_chunks_keeps_what_was_read() -> None:
    ask = Asked(runner_of(text_model("llama"), torch.float32))
    runner, cache = ask.runner, ask.cache
    prompt = text_prompt(0, 50)
    asked = iter([False] * 4)
    state = cache.resume(runner, prompt, BASE)
    with cache.keeping(state, BASE):
        assert runner.prefill(state, prompt, lambda: next(asked, True)) is None
    assert ask(prompt).cached == 3 * 9


@pytest.mark.parametrize("name", [*STOCK, "jamba"])
def test_a_prefill_cancelled_within_a_forward_keeps_nothing(name: str) -> None:
    model = text_model(name) if name == "jamba" else STOCK[name].make()
    prompt = text_prompt(0, 30) if name == "jamba" else STOCK[name].prompt(text_length=20)
    ask = Asked(runner_of(model, torch.float32))
    runner, cache = ask.runner, ask.cache
    asked = iter([False] * 3)
    state = cache.resume(runner, prompt, BASE)
    with cache.keeping(state, BASE):
        assert runner.prefill(state, prompt, lambda: next(asked, True)) is None
    assert ask(prompt).cached == 0


def test_a_state_above_the_limit_is_not_kept() -> None:
    runner = runner_of(text_model("llama"), torch.float32)
    prompt = text_prompt(0, 30)
    state = runner.start()
    runner.prefill(state, prompt, lambda: False)
    # keys and values of 2 layers with 2 heads of 8 numbers, 4 bytes each
    size = 2 * 2 * 2 * 8 * 4 * (30 + NEW_TOKENS - 1)
    for limit, cached in [(size - 1, 0), (size, 29)]:
        cache = PrefixCache(limit)
        answer(runner, prompt, cache)
        assert answer(runner, prompt, cache).cached == cached
    # Cutting frees nothing by itself, and is counted so.
    before = state.nbytes
    assert state.truncate(20) and state.nbytes == before
