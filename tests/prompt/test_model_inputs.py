"""build_prompt on loaded models: places, counts, equality with the processor's own rendering, what is left out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmchat.errors import ModelError, TooLongError
from mmchat.images import decode
from mmchat.model.loaded_model import LoadedModel
from mmchat.prompt import model_inputs, pixel_values
from mmchat.prompt.model_inputs import build_prompt
from mmchat.prompt.pixel_values import (
    Cancelled,
    PixelCache,
    PreparedPicture,
    decoded_bytes,
    process_pictures,
)
from mmchat.turns import Turn
from tests.model import tiny
from tests.model.tiny import shown

Loaded = Callable[[str, str], LoadedModel]

TALK = [
    Turn("user", ("What is this? ", shown(0))),
    Turn("assistant", ("It is red.",)),
    Turn("user", (shown(1, (100, 30)), "and ", shown(2), " this?")),
]


@pytest.mark.parametrize("kind", tiny.SEEING)
def test_picture_tokens_are_as_many_as_features(loaded: Loaded, kind: str) -> None:
    model = loaded(kind, "fp32")
    prompt = build_prompt(model, TALK, 16)
    assert [span.sha256 for span in prompt.images] == [
        shown(0).sha256,
        shown(1, (100, 30)).sha256,
        shown(2).sha256,
    ]
    # The model itself refuses a prompt whose picture tokens and features differ in number.
    with torch.no_grad():
        logits = model.model(input_ids=prompt.input_ids, **prompt.model_inputs).logits
    assert logits.shape[:2] == prompt.input_ids.shape
    assert prompt.image_tokens > 0 and prompt.dropped_turns == 0


@pytest.mark.parametrize("kind", tiny.SEEING)
def test_the_picture_and_the_text_change_the_answer(loaded: Loaded, kind: str) -> None:
    model = loaded(kind, "fp32")

    def last(text: str, seed: int) -> torch.Tensor:
        prompt = build_prompt(model, [Turn("user", (shown(seed), text))], 16)
        with torch.no_grad():
            out = model.model(input_ids=prompt.input_ids, **prompt.model_inputs)
        return out.logits[0, -1]

    assert not torch.allclose(last("what?", 0), last("what?", 5))
    assert not torch.allclose(last("what?", 0), last("colour?", 0))


@pytest.mark.parametrize("kind", sorted(set(tiny.SEEING) - {"visual_prefix"}))
def test_plain_conversations_equal_the_processors_own_rendering(loaded: Loaded, kind: str) -> None:
    model = loaded(kind, "fp32")
    # Every template of transformers puts a picture before the text.
    turns = [
        Turn("user", (shown(0), "What colour is it?")),
        Turn("assistant", ("It is red.",)),
        Turn("user", (shown(1, (100, 30)), "and this?")),
    ]
    pictures = [tiny.picture(0), tiny.picture(1, (100, 30))]
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]
    text = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    bos = model.tokenizer.bos_token
    stock = model.processor(
        images=[pictures],
        text=[text],
        return_tensors="pt",
        add_special_tokens=not (bos and text.startswith(bos)),
    )
    ours = build_prompt(model, turns, 16)
    if kind == "llava":
        # Its template writes a newline after a picture; a picture inside the text gets none.
        assert model.tokenizer.decode(ours.input_ids[0]).count("<image>\n") == 2
    assert ours.input_ids.tolist() == stock["input_ids"].tolist()
    for name, value in ours.model_inputs.items():
        torch.testing.assert_close(value, stock[name].to(value.dtype))


def test_people_cannot_write_a_picture(loaded: Loaded) -> None:
    for kind in tiny.SEEING:
        model = loaded(kind, "fp32")
        specials = " ".join(model.tokenizer.added_tokens_encoder)
        prompt = build_prompt(model, [Turn("user", (specials, shown(0)))], 16)
        plain = build_prompt(model, [Turn("user", ("x", shown(0)))], 16)
        assert prompt.image_tokens == plain.image_tokens
        model.model(input_ids=prompt.input_ids, **prompt.model_inputs)


def test_keys_tell_pictures_apart(loaded: Loaded) -> None:
    model = loaded("visual_prefix", "fp32")
    one = build_prompt(model, [Turn("user", ("what is ", shown(0), "?"))], 16)
    other = build_prompt(model, [Turn("user", ("what is ", shown(3), "?"))], 16)
    assert one.input_ids.tolist() == other.input_ids.tolist()
    assert one.keys != other.keys
    differ = [i for i, (a, b) in enumerate(zip(one.keys, other.keys, strict=True)) if a != b]
    span = one.images[0]
    assert differ == list(range(span.start, span.start + span.length))


def test_the_oldest_exchanges_are_left_out(loaded: Loaded) -> None:
    model = loaded("visual_prefix", "fp32")
    turns: list[Any] = [Turn("system", ("Be brief.",))]
    for number in range(6):
        turns += [
            Turn("user", (shown(number), f"what is number {number}?")),
            Turn("assistant", (f"answer {number}",)),
        ]
    turns.append(Turn("user", ("and the last?",)))
    whole = build_prompt(model, turns, 16)
    length = whole.input_ids.shape[1]
    seen = set()
    for room in range(length, 40, -7):
        prompt = build_prompt(replace(model, context_length=room), turns, 4)
        text = model.tokenizer.decode(prompt.input_ids[0])
        assert prompt.input_ids.shape[1] <= room - 4
        assert "Be brief." in text and "and the last?" in text
        kept = 6 - prompt.dropped_turns // 2
        assert prompt.dropped_turns % 2 == 0 and len(prompt.images) == kept
        assert prompt.image_tokens == kept * model.processor.prefix_tokens
        assert [f"answer {n}" in text for n in range(6)] == [n >= 6 - kept for n in range(6)]
        seen.add(prompt.dropped_turns)
    assert len(seen) > 3


def test_a_long_conversation_keeps_what_fits_and_reads_no_older_picture(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("visual_prefix", "fp32")
    head = [Turn("system", ("Be brief.",))]
    exchanges = [
        [Turn("user", (shown(n), "what is it? " * (n % 5))), Turn("assistant", (f"a {n}",))]
        for n in range(150)
    ]
    last = [Turn("user", ("and the last?",))]

    def talk(kept: int) -> list[Any]:
        return [*head, *(turn for pair in exchanges[150 - kept :] for turn in pair), *last]

    lengths = [
        build_prompt(replace(model, context_length=10**6), talk(kept), 4).input_ids.shape[1]
        for kept in range(60)
    ]
    read = decodings(monkeypatch)
    for room in (lengths[0], lengths[1] - 1, lengths[14], lengths[15], lengths[37] + 1):
        read.clear()
        fresh = replace(model, context_length=room + 4, pixels=PixelCache())
        prompt = build_prompt(fresh, talk(150), 4)
        kept = max(n for n, length in enumerate(lengths) if length <= room)
        assert prompt.input_ids.shape[1] == lengths[kept]
        assert prompt.dropped_turns == 2 * (150 - kept)
        assert len(read) <= max(16, 2 * kept + 2)


def test_a_last_turn_that_is_too_long_is_an_error(loaded: Loaded) -> None:
    model = replace(loaded("visual_prefix", "fp32"), context_length=40)
    with pytest.raises(
        ModelError, match=r"takes \d+ tokens, 8 of them its pictures.*fewer pictures"
    ):
        build_prompt(model, [Turn("user", (shown(0), shown(1), "what " * 40))], 8)


def test_a_system_prompt_that_is_too_long_is_named_in_the_error(loaded: Loaded) -> None:
    model = replace(loaded("visual_prefix", "fp32"), context_length=60)
    turns = [Turn("system", ("rule " * 60,)), Turn("user", ("what?",))]
    with pytest.raises(TooLongError, match=r"system prompt takes \d+ tokens.*shorten the system"):
        build_prompt(model, turns, 8)
    whole = [*turns[:1], Turn("user", ("what " * 90,))]
    alone = build_prompt(replace(model, context_length=10**6), whole[1:], 8).input_ids.shape[1]
    with pytest.raises(TooLongError, match=rf"last message takes {alone} tokens.*shorten it\."):
        build_prompt(model, whole, 8)


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes of each picture that is decoded from now on."""
    read: list[bytes] = []

    def counted(data: bytes) -> Any:
        read.append(data)
        return decode(data)

    monkeypatch.setattr(pixel_values, "decode", counted)
    return read


@pytest.mark.parametrize("kind", ["visual_prefix", "llava"])
def test_a_cancellation_stops_before_each_picture(
    loaded: Loaded, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(loaded(kind, "fp32"), pixels=PixelCache())
    read = decodings(monkeypatch)
    turns = [Turn("user", (*map(shown, range(5)), "what?"))]
    for allowed in (0, 2):
        read.clear()
        with pytest.raises(Cancelled):
            build_prompt(model, turns, 8, lambda: len(read) >= allowed)  # noqa: B023
        assert len(read) == allowed
        model.pixels = PixelCache()


def test_a_picture_of_an_earlier_turn_is_not_decoded_again(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(loaded("visual_prefix", "fp32"), pixels=PixelCache())
    first = build_prompt(model, TALK[:1], 16)
    read = decodings(monkeypatch)
    again = build_prompt(model, TALK, 16)
    assert read == [shown(1, (100, 30)).data, shown(2).data]
    pixels = again.model_inputs["pixel_values"]
    assert torch.equal(pixels[:1], first.model_inputs["pixel_values"])
    model.pixels = PixelCache(limit=0)
    assert torch.equal(build_prompt(model, TALK, 16).model_inputs["pixel_values"], pixels)
    assert len(read) == 5


def test_the_pixel_cache_drops_the_least_recently_used() -> None:
    cache = PixelCache(limit=100 * 4)
    for name in "abc":
        cache.put(name, PreparedPicture(torch.zeros(1, 30), 4))
    assert cache.get("a") is not None
    cache.put("d", PreparedPicture(torch.zeros(1, 30), 4))
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "c", "d"]
    cache.put("large", PreparedPicture(torch.zeros(1, 101), 4))
    assert cache.get("large") is None and all(cache.get(name) for name in "acd")


def test_a_hugging_face_vlm_does_not_get_more_large_pictures_at_once_than_needed(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("llava", "fp32")
    turns: list[Any] = []
    for number in range(10):
        turns += [Turn("user", (shown(number), "what?")), Turn("assistant", ("red",))]
    turns.append(Turn("user", ("and now?",)))
    kept = build_prompt(model, turns[-3:], 4)
    small = replace(model, context_length=kept.input_ids.shape[1] + 4)
    whole = build_prompt(model, turns, 4)
    read = decodings(monkeypatch)
    # As if each picture took a third of the limit.
    monkeypatch.setattr(model_inputs, "_FIRST_TRY_BYTES", 3 * decoded_bytes(shown(9).data))
    assert build_prompt(small, turns, 4).keys == kept.keys
    assert len(read) == 3
    everything = build_prompt(model, turns, 4)
    assert everything.keys == whole.keys
    for name, value in whole.model_inputs.items():
        assert torch.equal(everything.model_inputs[name], value)


def test_a_text_model_refuses_pictures(loaded: Loaded) -> None:
    model = loaded("llama", "fp32")
    with pytest.raises(ModelError, match="reads text only"):
        build_prompt(model, [Turn("user", (shown(0), "what?"))], 8)
    prompt = build_prompt(model, [Turn("user", ("what?",))], 8)
    assert prompt.model_inputs == {} and prompt.images == []


def test_the_processor_decides_what_stands_for_a_picture(loaded: Loaded) -> None:
    model = loaded("idefics3", "fp32")
    (tall, wide), inputs = process_pictures(
        model.processor, [tiny.picture(0, (16, 60)), tiny.picture(1, (60, 16))]
    )
    assert "<row_2_col_1>" in tall and "<row_1_col_2>" in wide
    assert inputs["pixel_values"].dim() == 5
