"""The built-in model's files: through the stock Auto classes, 4-bit where promised, any text typed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import mmchat.model.visual_prefix  # noqa: F401 (registers its classes)
from mmchat.prompt.chat_encoding import encode_chat
from tests.builtin.asking import SCENES, STARS, user
from tests.cli.conftest import Run

if TYPE_CHECKING:
    from mmchat.model.loaded_model import LoadedModel

TOKENIZER = AutoTokenizer.from_pretrained(SCENES)
SPECIAL = sorted(TOKENIZER.added_tokens_decoder)
NAMES = [str(TOKENIZER.added_tokens_decoder[token]) for token in SPECIAL]


def test_only_the_linear_layers_of_the_text_blocks_are_four_bit(loaded: "LoadedModel") -> None:
    assert loaded.quantization == "4bit"
    parts = {part.part: part for part in loaded.parts}
    blocks = parts.pop("text blocks")
    layers = loaded.model.config.text_config.num_hidden_layers
    assert blocks.four_bit == blocks.linear_layers == 7 * layers
    assert {"vision tower", "projector", "lm_head"} <= set(parts)
    assert all(part.four_bit == 0 and "nf4" not in part.dtype for part in parts.values())


def test_doctor_and_models_show_say_it(mmchat: Run) -> None:
    doctor = json.loads(mmchat("doctor", "--json").stdout)
    shown = json.loads(mmchat("models", "show", "scenes", "--json").stdout)
    for found in (doctor["model"], shown["loaded"]):
        four_bit = {part["part"]: part["four_bit"] for part in found["parts"]}
        assert four_bit.pop("text blocks") > 0 and set(four_bit.values()) == {0}
        assert found["quantization"] == "4bit"
        assert found["compute_dtype"] == doctor["compute"]["dtype"]
    assert doctor["compute"]["dtype"] in ("bfloat16", "float32")
    assert shown["fits"] is True


def test_it_is_small_and_saved_in_bf16() -> None:
    file = SCENES / "model.safetensors"
    assert file.stat().st_size < 25_000_000
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


def test_the_auto_classes_read_and_write_it_exactly(tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(SCENES, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(SCENES)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(again) is type(model)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # fp32 holds every bf16 number, so what is saved as bf16 again is what there was.
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    first = load_file(SCENES / "model.safetensors")
    second = load_file(tmp_path / "bf16" / "model.safetensors")
    assert first.keys() - second.keys() <= {"lm_head.weight"}  # tied: it may be there twice
    assert all(torch.equal(first[name], second[name]) for name in second)
    with Image.open(STARS) as image:
        shown = {"images": image.convert("RGB"), "text": "<image>what is this?"}
        one = processor(**shown, return_tensors="pt")
        two = AutoProcessor.from_pretrained(tmp_path)(**shown, return_tensors="pt")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with torch.no_grad():
        assert torch.equal(again(**two).logits, again(**one).logits)


# Characters without meaning in UTF-8 (lone surrogates) never reach the tokenizer.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HOSTILE = st.lists(st.one_of(TEXT, st.sampled_from(NAMES))).map("".join)


@pytest.mark.parametrize("name", NAMES)
def test_a_typed_special_token_is_text(name: str) -> None:
    _typed_is_text(f"{name} a{name}{name[:-1]} {name}")


@given(HOSTILE)
def test_any_text_is_typed_exactly_and_never_forms_a_special_token(text: str) -> None:
    _typed_is_text(text)


def _typed_is_text(text: str) -> None:
    empty = encode_chat(TOKENIZER, [user("")], add_generation_prompt=True).input_ids
    ids = encode_chat(TOKENIZER, [user(text)], add_generation_prompt=True).input_ids
    begin, end = empty[:1], empty[1:]
    assert ids[:1] == begin and ids[-len(end) :] == end
    typed = ids[1 : -len(end)]
    assert not set(typed) & set(SPECIAL)
    assert TOKENIZER.decode(typed) == text
