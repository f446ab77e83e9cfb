"""Every kind of base trains, by every method, and the engine's loader and stock peft take the result."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import Qwen2Config, SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmchat.data.types import Dataset, Example, Turn
from mmchat.model.configuration import VisualPrefixConfig
from mmchat.model.loading import LoadedModel, load_model
from mmchat.model.processor import VisualPrefixProcessor
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from mmchat.training.preparing import prepare
from mmchat.training.progress import RunFolder, Status
from mmchat.training.tune import Tune
from mmchat.training.tuning import read_tuning
from tests.model import tiny
from tests.training.tuned import picture

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def qwen_siglip(folder: Path) -> Path:
    """The shape of a 7B visual-prefix model: Qwen2 text, SigLIP tower, MLP."""
    tok = tiny.tokenizer(
        tiny.CHATML, ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"], eos="<|im_end|>"
    )
    config = VisualPrefixConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            image_size=32, patch_size=8, vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tok), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id,
        ),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        projector_type="mlp",
        vision_feature_select_strategy="full",
    )  # fmt: skip
    VisualPrefixForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    VisualPrefixProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tok,
        chat_template=tiny.CHATML,
        prefix_tokens=config.image_seq_length,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def make(kind: str) -> Path:
        folder = root / kind
        return qwen_siglip(folder) if kind == "qwen_siglip" else tiny.build(kind, folder)

    return lru_cache(make)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMCHAT_HOME", str(tmp_path / "home"))
    return tmp_path


def three_pictures(count: int = 6, *, shown: int = 3) -> Dataset:
    made = []
    for number in range(count):
        parts: list[Any] = []
        for at in range(shown):
            parts += [picture(number * 3 + at), f" picture {at + 1}, "]
        turns = (
            Turn("user", (*parts, "what do you see?")),
            Turn("assistant", (f"It is number {number}.",)),
            Turn("user", ("sure?",)),
            Turn("assistant", ("Yes.",)),
        )
        made.append(Example(turns, "number", f"made, sample {number + 1}"))
    return Dataset("made", "here", made, (), "0" * 64)


def trained(base: Path, run: Path, method: str, data: Dataset, *more: str) -> tuple[Tune, Path]:
    rates = ["learning_rate=1e-2", "projector_learning_rate=1e-2", "vision_learning_rate=1e-2"]
    recipe = read_tuning(
        None,
        [f"model={base}", "name=t", "data.replay=0", f"stages.0.method={method}", "steps=2",
         "batch=3", "row_tokens=256", *rates, *more],
    )  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    prepared = prepare(recipe, data, list(data.examples[:2]))
    tune = Tune(prepared, data.sha256, RunFolder(run), Status("t", str(base), "preparing"))
    return tune, tune.run()


def logits(loaded: LoadedModel) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found: torch.Tensor = loaded.model(input_ids=ids).logits
    return found


def test_qlora_on_three_pictures_a_conversation(base: Callable[[str], Path], home: Path) -> None:
    """The issue's own case: Qwen2 and SigLIP in NF4; the loader and stock peft take what comes out."""
    folder = base("qwen_siglip")
    tune, made = trained(folder, home / "run", "qlora", three_pictures())
    assert tune.loaded.quantization == "4bit"
    rows = {row.part: row for row in tune.trainable.table()}
    assert rows["text blocks"].four_bit and not rows["text blocks"].trainable
    assert not rows["vision tower"].four_bit and not rows["vision tower"].trainable
    wanted = logits(tune.loaded)

    engine = load_model(str(folder), adapter=str(made), quantization="4bit", device="cpu")
    assert torch.allclose(logits(engine), wanted, atol=1e-4)

    plain = load_model(str(folder), quantization="4bit", device="cpu")
    assert not torch.allclose(logits(plain), wanted, atol=1e-4)
    stock = PeftModel.from_pretrained(plain.model, str(made / "lora"))
    plain.model = stock
    assert torch.allclose(logits(plain), wanted, atol=1e-4)


@pytest.mark.parametrize("more", [["lora.dora=true"], ["lora.rslora=true"], ["vision_blocks=1"]])
def test_forms_of_lora_come_back(base: Callable[[str], Path], home: Path, more: list[str]) -> None:
    folder = base("qwen_siglip")
    tune, made = trained(folder, home / "run", "lora", three_pictures(), *more)
    engine = load_model(str(folder), adapter=str(made), quantization="fp32", device="cpu")
    assert torch.allclose(logits(engine), logits(tune.loaded), atol=1e-4)
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        a, b = (m.model.project(m.model.encode_images(pixels)) for m in (engine, tune.loaded))
    assert torch.allclose(a, b, atol=1e-5)


def test_projector_alone(base: Callable[[str], Path], home: Path) -> None:
    tune, made = trained(base("qwen_siglip"), home / "run", "projector", three_pictures())
    assert not (made / "lora").exists() and (made / "projector.safetensors").is_file()
    assert {row.part for row in tune.trainable.table() if row.trainable} == {"projector"}


def test_full_leaves_a_model(base: Callable[[str], Path], home: Path) -> None:
    tune, made = trained(base("qwen_siglip"), home / "run", "full", three_pictures())
    model = load_model(str(made), quantization="fp32", device="cpu")
    trained_weights = dict(tune.loaded.model.named_parameters())
    before = load_model(str(base("qwen_siglip")), quantization="fp32", device="cpu").model
    for name, parameter in before.named_parameters():
        found = model.model.get_parameter(name)
        assert torch.equal(found, trained_weights[name].float()), name
        frozen = "vision_tower" in name
        assert torch.equal(found, parameter) == frozen or "norm" in name or "bias" in name, name


@pytest.mark.parametrize("kind", sorted(tiny.KINDS))
def test_every_kind_trains(base: Callable[[str], Path], home: Path, kind: str) -> None:
    shown = 0 if kind == "llama" else 2
    tune, made = trained(base(kind), home / "run", "lora", three_pictures(4, shown=shown))
    assert tune.status.held_out_loss is not None
    changed = load_model(str(base(kind)), adapter=str(made), quantization="fp32", device="cpu")
    plain = load_model(str(base(kind)), quantization="fp32", device="cpu")
    assert not torch.allclose(logits(changed), logits(plain), atol=1e-4)
