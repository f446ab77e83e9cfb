"""Every kind of base trains, by every method, and the engine's loader and stock peft take the result."""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Qwen2Config, SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmchat.adapters.card import read_card
from mmchat.data.types import Dataset, Example
from mmchat.errors import ModelError, RecipeError
from mmchat.model.configuration import VisualPrefixConfig
from mmchat.model.load_plan import plan_load
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_model
from mmchat.model.processor import VisualPrefixProcessor
from mmchat.model.quantization import part_tensors, set_packing
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from mmchat.prompt.model_inputs import build_prompt
from mmchat.training.dataloader import StepDataset
from mmchat.training.finetune import Trainer
from mmchat.training.finetune_config import read_config
from mmchat.training.losses import PackedLoss, autocast
from mmchat.training.prepare import prepare
from mmchat.training.run_folder import RunFolder, Status
from mmchat.training.run_plan import _skeleton, _trainable_parameters
from mmchat.turns import Turn
from tests.adapters.adapting import active
from tests.model import tiny
from tests.model.forms import relative_error
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
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> Path:
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


def trained(
    base: Path, run: Path, method: str, data: Dataset, *more: str, file: Path | None = None
) -> tuple[Trainer, Path]:
    rates = ["learning_rate=1e-2", "projector_learning_rate=1e-2", "vision_learning_rate=1e-2"]
    recipe = read_config(
        file,
        [f"model={base}", "name=t", "data.replay=0", f"stages.0.method={method}", "steps=2",
         "batch=3", "row_tokens=256", *rates, *more],
    )  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    prepared = prepare(recipe, data, list(data.examples[:2]))
    tune = Trainer(prepared, data.sha256, RunFolder(run), Status("t", str(base), "preparing"))
    return tune, tune.run()


def plain_form() -> Any:
    """How an unquantized base is kept in the dtype of this test."""
    return os.environ["MMCHAT_MODEL_COMPUTE_DTYPE"]


def assert_came_back(found: torch.Tensor, wanted: torch.Tensor, base: torch.Tensor) -> None:
    """An adapter says what it said when it was trained, and not what its base says.

    In bfloat16 what was trained in float32 is rounded to the base's dtype: it may be off by a part of
    what training changed.
    """
    if plain_form() == "fp32":
        assert torch.allclose(found, wanted, atol=1e-4)
        assert not torch.allclose(base, wanted, atol=1e-4)
    else:
        assert relative_error(found, wanted) <= 0.25 * relative_error(base, wanted)


def logits(loaded: LoadedModel) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), autocast(loaded.device, loaded.compute_dtype):
        found: torch.Tensor = loaded.model(input_ids=ids).logits
    return found


def prefix(loaded: LoadedModel) -> torch.Tensor:
    """The visual prefix tokens of a picture, of a visual-prefix model."""
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).to(loaded.compute_dtype)
    with torch.no_grad(), autocast(loaded.device, loaded.compute_dtype):
        found: torch.Tensor = loaded.model.project(loaded.model.encode_images(pixels))
    return found


def test_qlora_on_three_pictures_a_conversation(base: Callable[[str], Path], home: Path) -> None:
    """The issue's own case: Qwen2 and SigLIP in NF4; the loader and stock peft take what comes out."""
    folder = base("qwen_siglip")
    tune, made = trained(folder, home / "run", "qlora", three_pictures())
    assert tune.loaded.quantization == "4bit"
    rows = {row.name: row for row in tune.trainable.summarize_parts()}
    assert rows["text blocks"].four_bit and not rows["text blocks"].trainable
    assert not rows["vision tower"].four_bit and not rows["vision tower"].trainable
    wanted = logits(tune.loaded)

    plain = load_model(str(folder), quantization="4bit", device="cpu")
    # The packed kernel that the engine may have is another arithmetic: compared in test_packing.
    set_packing(plain.model, allowed=False)
    bare = logits(plain)
    engine = load_model(str(folder), quantization="4bit", device="cpu")
    active(engine).switch(str(made))
    set_packing(engine.model, allowed=False)
    assert_came_back(logits(engine), wanted, bare)
    plain.model = PeftModel.from_pretrained(plain.model, str(made / "lora"))
    assert_came_back(logits(plain), wanted, bare)


@pytest.mark.parametrize("more", [["lora.dora=true"], ["lora.rslora=true"], ["vision_blocks=1"]])
def test_forms_of_lora_come_back(base: Callable[[str], Path], home: Path, more: list[str]) -> None:
    folder = base("qwen_siglip")
    tune, made = trained(folder, home / "run", "lora", three_pictures(), *more)
    plain = load_model(str(folder), quantization=plain_form(), device="cpu")
    engine = load_model(str(folder), quantization=plain_form(), device="cpu")
    active(engine).switch(str(made))
    assert_came_back(*(logits(model) for model in (engine, tune.loaded, plain)))
    assert_came_back(*(prefix(model) for model in (engine, tune.loaded, plain)))


def test_projector_alone(base: Callable[[str], Path], home: Path) -> None:
    tune, made = trained(base("qwen_siglip"), home / "run", "projector", three_pictures())
    assert not (made / "lora").exists() and (made / "projector.safetensors").is_file()
    assert {row.name for row in tune.trainable.summarize_parts() if row.trainable} == {"projector"}


def test_full_leaves_a_model(base: Callable[[str], Path], home: Path) -> None:
    muon = "optimizer=muon"
    tune, made = trained(base("qwen_siglip"), home / "run", "full", three_pictures(), muon)
    model = load_model(str(made), quantization="fp32", device="cpu")
    groups = tune.trainable.start_stage(tune.recipe.stages[0])
    linear = {
        n for g in groups for n, is_one in zip(g["names"], g["linear"], strict=True) if is_one
    }
    assert "model.language_model.layers.0.mlp.up_proj.weight" in linear
    assert not [name for name in linear if "embed_tokens" in name or "lm_head" in name]
    trained_weights = dict(tune.loaded.model.named_parameters())
    before = load_model(str(base("qwen_siglip")), quantization="fp32", device="cpu").model
    for name, parameter in before.named_parameters():
        found = model.model.get_parameter(name)
        assert torch.equal(found, trained_weights[name].float()), name
        frozen = "vision_tower" in name
        assert torch.equal(found, parameter) == frozen or "norm" in name or "bias" in name, name


def hybrid(folder: Path, kind: str) -> Path:
    """A text model of which layers carry a state over the row."""
    tok = tiny.tokenizer(tiny.CHATML, ["<pad>", "<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    sizes = {
        "vocab_size": len(tok), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "pad_token_id": tok.pad_token_id, "eos_token_id": tok.eos_token_id,
    }  # fmt: skip
    more: dict[str, Any] = {
        "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        "mamba": {"state_size": 4},
        "qwen3_next": {
            "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1,
            "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        },
    }  # fmt: skip
    config = CONFIG_MAPPING[kind](**{**sizes, **more[kind]})
    return tiny._save(folder, AutoModelForCausalLM.from_config(config), tok)


def texts() -> Dataset:
    """Conversations of several lengths, without a picture."""
    made = [
        Example((Turn("user", ("what?" * n,)), Turn("assistant", ("That." * n,))), "", f"made, {n}")
        for n in (1, 4, 9)
    ]
    return Dataset("made", "here", made, (), "0" * 64)


def test_layers_that_are_none_for_lora_are_told(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be added to .*lora\.targets=…, from .*in_proj"):
        trained(hybrid(home / "mamba", "mamba"), home / "run", "lora", texts())


@pytest.mark.parametrize(
    ("kind", "method"), [("lfm2", "lora"), ("mamba", "full"), ("qwen3_next", "full")]
)
def test_a_recurrent_base_learns_one_conversation_a_row(home: Path, kind: str, method: str) -> None:
    """Conversations of several lengths in a step; none leaks into the next."""
    tune, _ = trained(hybrid(home / kind, kind), home / "run", method, texts())
    assert not tune.can_pack and tune.status.loss is not None
    alone = StepDataset(
        tune.prepared.train,
        None,
        tune._rows(tune.recipe.stages[0]),
        batch=3,
        replay_share=0,
        seed=1,
    )[0]
    judge = PackedLoss(tune.loaded.model.float().eval())
    for row in alone.rows:
        tokens = row.batch.input_ids
        asked = row.batch.labels[0] != -100
        with torch.no_grad():
            logits = tune.loaded.model(input_ids=tokens).logits[0, asked]
            losses = torch.nn.functional.cross_entropy(
                logits, row.batch.labels[0, asked], reduction="none"
            )
            wanted = (losses * row.batch.weights[0, asked]).sum()
            assert judge(row.batch, None).item() == pytest.approx(float(wanted), rel=1e-4)


def test_conversations_share_a_picture_where_attention_alone_connects_them(
    base: Callable[[str], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = three_pictures(1).examples[0].turns
    twice = [Example(turns[:2], "", "made, 1"), Example(turns[:2], "", "made, 2")]
    data = Dataset("made", "here", twice, (), "0" * 64)
    recipe = read_config(None, [f"model={base('qwen_siglip')}", "data.replay=0"])
    assert [len(tree.branches) for tree in prepare(recipe, data, []).train.trees] == [2]
    monkeypatch.setattr("mmchat.training.prepare.can_pack", lambda config: False)
    assert [len(tree.branches) for tree in prepare(recipe, data, []).train.trees] == [1, 1]


def test_stages_that_train_other_blocks_of_the_encoder(
    base: Callable[[str], Path], home: Path
) -> None:
    """Features are the base's before the first such stage; from it on the encoder looks itself."""
    stages = ['{{name="a",method="lora"}}', '{{name="b",vision_blocks=2,method="lora"}}',
              '{{name="c",vision_blocks=1,method="lora"}}', '{{name="d",method="lora"}}']  # fmt: skip
    file = home / "recipe.toml"
    file.write_text(f"stages = [{', '.join(stages)}]".replace("{{", "{").replace("}}", "}"))
    tune, _ = trained(base("qwen_siglip"), home / "run", "lora", three_pictures(), file=file)
    assert [tune._reads_pixels(index) for index in range(4)] == [False, True, True, True]
    counts = []
    for stage in tune.recipe.stages:
        tune.trainable.start_stage(stage)
        rows = {row.name: row.trainable for row in tune.trainable.summarize_parts()}
        counts.append(rows["vision tower"])
        assert sum(rows.values()) == _trainable_parameters(
            tune.prepared, stage, _skeleton(tune.prepared)
        )
    assert counts[0] == counts[3] == 0 and counts[1] == 2 * counts[2] > 0


def test_what_the_base_cannot_be_asked_is_no_sample(
    base: Callable[[str], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too long, or a picture for a base that reads text: left out, and not asked while it trains."""
    text, seen = three_pictures(4, shown=0).examples, three_pictures(1).examples
    long = Example((Turn("user", ("why? " * 900,)), Turn("assistant", ("So.",))), "", "made, long")
    cut = Example((*text[0].turns, *long.turns), "", "made, cut")
    data = Dataset("made", "here", list(text), (), "0" * 64)
    recipe = read_config(None, [f"model={base('llama')}", "name=t", "steps=1", "row_tokens=256"])
    prepared = prepare(recipe, data, [*seen, long, cut, text[1]], allow_bad=True)
    assert [example.place for example in prepared.held_out_examples] == ["made, cut", text[1].place]
    assert prepared.held_out_examples[0].turns == text[0].turns
    tune = Trainer(prepared, "", RunFolder(home), Status("t", "", "preparing"))
    tune.run()
    assert len(tune.status.samples) == 2
    monkeypatch.setattr("mmchat.training.prepare.MAX_NEW_TOKENS", 4096)  # no room for an answer
    assert prepare(recipe, data, [text[1]]).held_out_examples == []


def test_each_stage_weighs_answers_as_it_says(base: Callable[[str], Path], home: Path) -> None:
    file = home / "recipe.toml"
    stages = ("a", 0.0), ("b", 1.0)
    told = [f'[[stages]]\nname = "{name}"\nlength_weight = {weight}\n' for name, weight in stages]
    file.write_text("\n".join(told))
    recipe = read_config(file, [f"model={base('llama')}", "data.replay=0"])
    prepared = prepare(recipe, three_pictures(3, shown=0), [])
    for stage in prepared.recipe.stages:
        for tree in prepared.of_stage(stage).train.trees:
            for one in tree.branches:
                asked = sum(label != -100 for label in one.labels)
                assert one.weight * (asked if stage.name == "b" else 1) == pytest.approx(1.0)


def test_auto_asks_for_the_memory_that_it_takes(
    base: Callable[[str], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large base is never asked to fit unquantized first, and no flag is named that is none."""
    asked: list[str] = []

    def planned(name: str, **of: Any) -> Any:
        asked.append(of["quantization"])
        return plan_load(name, **of)

    monkeypatch.setattr("mmchat.training.prepare.plan_load", planned)
    recipe = read_config(None, [f"model={base('qwen_siglip')}", "data.replay=0"])
    small = prepare(recipe, three_pictures(), [])
    monkeypatch.setattr("mmchat.training.finetune_config.LARGE_MODEL_PARAMETERS", 0)
    large = prepare(recipe, three_pictures(), [])
    assert [small.recipe.stages[0].method, large.recipe.stages[0].method] == ["lora", "qlora"]
    assert large.plan.weight_format == "4bit" and len(asked) == 2 and asked[1] == "auto"
    assert prepare(large.recipe, three_pictures(), []).plan.weight_format == "4bit"

    monkeypatch.setattr("mmchat.model.load_plan.available_memory", lambda: 0)
    with pytest.raises(ModelError, match=r"--set method=qlora") as told:
        prepare(read_config(None, [f"model={base('llama')}", "method=lora"]), three_pictures(), [])
    assert "--quantization" not in str(told.value)


@pytest.mark.parametrize("kind", sorted(tiny.KINDS))
def test_every_kind_trains(base: Callable[[str], Path], home: Path, kind: str) -> None:
    """LoRA on a 4-bit base and the projector together, and both switch together."""
    sees = kind != "llama"
    data = three_pictures(4, shown=2 if sees else 0)
    more = ["projector=true"] if sees else []
    tune, made = trained(base(kind), home / "run", "qlora", data, *more)
    assert tune.status.held_out_loss is not None
    trains = {row.name for row in tune.trainable.summarize_parts() if row.trainable}
    assert trains == ({"LoRA", "projector"} if sees else {"LoRA"})
    assert (made / "projector.safetensors").is_file() == sees

    model = load_model(str(base(kind)), quantization="4bit", device="cpu")
    set_packing(model.model, allowed=False)
    before = seeing_logits(model, sees)
    active(model).switch(str(made))
    assert_came_back(seeing_logits(model, sees), seeing_logits(tune.loaded, sees), before)
    active(model).switch("")
    assert torch.equal(seeing_logits(model, sees), before)


@pytest.mark.parametrize("kind", sorted(tiny.SEEING))
def test_the_projector_of_every_kind_trains_alone(
    base: Callable[[str], Path], home: Path, kind: str
) -> None:
    tune, made = trained(base(kind), home / "run", "projector", three_pictures(4, shown=1))
    assert {row.name for row in tune.trainable.summarize_parts() if row.trainable} == {"projector"}
    assert read_card(made).trained == ("projector",) and not (made / "lora").exists()
    saved = load_file(made / "projector.safetensors")
    plain = load_model(str(base(kind)), quantization=plain_form(), device="cpu")
    own = part_tensors(plain.model, "projector")
    assert saved.keys() == own.keys()
    assert any(not torch.equal(saved[name], own[name].float()) for name in own)
    before = seeing_logits(plain, True)
    active(plain).switch(str(made))
    assert not torch.equal(seeing_logits(plain, True), before)


def seeing_logits(loaded: LoadedModel, sees: bool) -> torch.Tensor:
    """What a model says about a picture, or without one."""
    parts = (tiny.shown(0), "what is it?") if sees else ("what is it?",)
    prompt = build_prompt(loaded, [Turn("user", parts)], 8)
    with torch.no_grad(), autocast(loaded.device, loaded.compute_dtype):
        found: torch.Tensor = loaded.model(input_ids=prompt.input_ids, **prompt.model_inputs).logits
    return found


def test_a_projector_that_is_not_there_cannot_be_asked_for(
    base: Callable[[str], Path], home: Path
) -> None:
    for asked in (["stages.0.projector=true", "method=lora"], ["method=projector"]):
        recipe = read_config(None, [f"model={base('llama')}", "data.replay=0", *asked])
        with pytest.raises(RecipeError, match="trains the projector, but the base has none"):
            prepare(recipe, three_pictures(3, shown=0), [])


def test_the_projector_of_a_published_model_trains_only_where_it_is_asked_for(
    base: Callable[[str], Path], home: Path
) -> None:
    found = [
        prepare(
            read_config(None, [f"model={base(kind)}", "data.replay=0"]), three_pictures(3), []
        ).recipe.stages[0].projector
        for kind in ("llava", "visual_prefix")
    ]  # fmt: skip
    assert found == [False, True]
