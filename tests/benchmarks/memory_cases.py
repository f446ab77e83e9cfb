"""Real training steps and answers, measured: the cases of `bench_memory`.

Models are random, or published ones whose weights are all 0 (`tests.memory.published`).
"""

import contextlib
import ctypes
import gc
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import peft  # noqa: F401 (loaded by the step, and so part of the imports)
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmchat.engine.decode import Decoding, TransformersRunner
from mmchat.engine.detokenize import StopStrings
from mmchat.engine.sampling import Sampler
from mmchat.memory.machine import WeightFormat, set_eager_trim
from mmchat.memory.model_dims import PHOTO, read_dims
from mmchat.model.configuration import GridVisionConfig, VisualPrefixConfig
from mmchat.model.load_plan import plan_load
from mmchat.model.loading import _load_weights, load_planned
from mmchat.model.processor import VisualPrefixProcessor
from mmchat.model.quantization import import_bitsandbytes
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from mmchat.training.finetune_config import FinetuneConfig, LoraOptions, StageConfig
from mmchat.training.losses import PackedLoss
from mmchat.training.optimizer import build_optimizers
from mmchat.training.packing import IGNORED, Branch, Tree, collate
from mmchat.training.process_state import IsolatedAccelerator
from mmchat.training.train_step import RowInput, StepInput, TrainStep
from mmchat.training.trainable import Trainable
from tests.memory import published
from tests.model.tiny import CHATML, tokenizer

import_bitsandbytes()

STEPS = 2
"""The second has the optimizer's state beside it."""
MADV_DONTNEED = 4
Dtype = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Shape:
    """A decoder of random weights, with a vision tower or without."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    family: str = "llama"
    vision: str = ""
    """ "grid" (the built-in tower, 16 prefix tokens), "siglip" (22M, 196) or "siglip-base" (86M, 196)."""


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("3M", 256, 5, 4, 4, 768, 800, vision="grid"),
        Shape("30M", 512, 8, 8, 4, 1408, 16384),
        Shape("60M-siglip", 640, 10, 10, 5, 1792, 16384, vision="siglip"),
        Shape("135M", 576, 30, 9, 3, 1536, 49152),
        Shape("360M-siglip", 960, 24, 15, 5, 2560, 49152, vision="siglip"),
        Shape("0.5B", 896, 24, 14, 2, 4864, 151936, family="qwen2"),
    )
}


@dataclass(frozen=True)
class Case:
    """One configuration. `answers` is the share of a row's tokens that are trained."""

    shape: str
    method: str = "lora"
    rows: int = 1
    row_tokens: int = 256
    pictures: int = 0
    rank: int = 16
    targets: tuple[str, ...] = ()
    projector: bool = False
    vision_blocks: int = 0
    optimizer: str = "adamw"
    checkpointing: bool = False
    answers: float = 0.3
    held_out: bool = False

    @property
    def asks(self) -> bool:
        """Whether it talks (methods "ask" and "ask4") instead of training; `row_tokens` is the context."""
        return self.method.startswith("ask")

    def form(self, dtype: Dtype) -> WeightFormat:
        """How the base is kept on a machine that computes in `dtype`, as `mmchat train` chooses it."""
        if self.method in ("qlora", "ask4"):
            return "4bit"
        return "fp32" if self.method == "full" else dtype

    @property
    def answer_tokens(self) -> int:
        """Of all rows."""
        return self.rows * int(self.row_tokens * self.answers)

    def __str__(self) -> str:
        words = [self.shape, self.method, f"{self.rows}x{self.row_tokens}"]
        words += [f"{self.pictures} pictures"] * bool(self.pictures)
        words += [f"rank {self.rank}"] * (self.rank != 16) + list(self.targets)
        words += ["projector"] * self.projector + ["vision blocks"] * bool(self.vision_blocks)
        words += [self.optimizer] * (self.optimizer != "adamw")
        return " ".join(words + ["checkpointing"] * self.checkpointing)


@dataclass(frozen=True)
class Measured:
    """Bytes above the import baseline: the peak of loading, what is held then, the peak of the steps."""

    load: int
    held: int
    steps: int

    @property
    def peak(self) -> int:
        return max(self.load, self.steps)


def write_model(shape: Shape, folder: Path) -> Path:
    """A model folder with random weights in bfloat16, as most are published."""
    torch.manual_seed(0)
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"]
    tok = tokenizer(CHATML, special, eos="<|im_end|>")
    text_class = Qwen2Config if shape.family == "qwen2" else LlamaConfig
    text = text_class(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    model: Any
    if not shape.vision:
        model = AutoModelForCausalLM.from_config(text, dtype=torch.bfloat16)
    else:
        side = 64 if shape.vision == "grid" else 224
        config = VisualPrefixConfig(
            vision_config=_tower(shape.vision, side),
            text_config=text,
            image_token_id=tok.convert_tokens_to_ids("<image>"),
            projector_type="shuffle_mlp" if shape.vision == "grid" else "mlp",
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=shape.tied,
        )
        model = VisualPrefixForConditionalGeneration(config).to(torch.bfloat16)
        processor = VisualPrefixProcessor(
            image_processor=SiglipImageProcessorPil(size={"height": side, "width": side}),
            tokenizer=tok,
            chat_template=CHATML,
            prefix_tokens=config.image_seq_length,
        )
        processor.save_pretrained(folder)
    model.save_pretrained(folder)
    if not shape.vision:
        tok.save_pretrained(folder)
    return folder


def _tower(kind: str, side: int) -> Any:
    if kind == "grid":
        return GridVisionConfig(image_size=side)
    width = 768 if kind == "siglip-base" else 384
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=12,
        num_attention_heads=width // 64,
        image_size=side,
        patch_size=16,
    )


def measure(case: Case, dtype: Dtype, folder: Path) -> Measured:
    """Loads as mmchat does, and answers or trains two steps."""
    torch.set_num_threads(1)  # what is held does not depend on it
    os.environ["MMCHAT_MODEL_COMPUTE_DTYPE"] = dtype
    plan = plan_load(str(folder), quantization=case.form(dtype), device="cpu")
    gc.collect()
    before = _memory("VmRSS")
    _forget_peak()

    def tell(*_: Any) -> None:
        _release_pages(folder)

    if case.shape in published.CONFIGS:
        model, loaded = _load_weights(plan, tell), None
    else:
        loaded = load_planned(plan, tell)
        model = loaded.model
    load, held = _memory("VmHWM") - before, _memory("VmRSS") - before
    _release_pages(folder)
    _forget_peak()
    if loaded is None or case.asks:
        _ask(case, model, plan.dtype, folder)
    else:
        set_eager_trim()  # as a run does if memory is tight: else the heap holds up to twice that
        _train(case, loaded)
    return Measured(load, held, _memory("VmHWM") - before)


def _release_pages(folder: Path) -> None:
    """Takes the pages of mapped weight files from this process, as the system does if memory is short.

    What is still needed of them comes back when it is read.
    """
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(f"{folder}/"):
            start, end = (int(place, 16) for place in fields[0].split("-"))
            libc.madvise(start, end - start, MADV_DONTNEED)


def _ask(case: Case, model: Any, dtype: torch.dtype, folder: Path) -> None:
    """An answer of eight tokens at the end of the context, as the engine gives it."""
    runner = TransformersRunner(model, compute_dtype=dtype)
    state = runner.start()
    prompt = _Prompt(case.row_tokens - 8)
    if case.pictures:
        prompt.show_picture(model.config, folder)
    prefilled = runner.prefill(state, prompt, lambda: False)
    assert prefilled is not None
    list(
        Decoding(
            runner,
            state,
            prefilled.logits,
            sampler=Sampler(),
            detokenizer=_NoText(),
            stops=StopStrings(()),
            eos_token_ids=frozenset(),
            max_tokens=8,
        )
    )


@dataclass
class _Span:
    start: int
    length: int
    sha256: str = ""


class _Prompt:
    def __init__(self, length: int) -> None:
        self.model_inputs: dict[str, torch.Tensor] = {}
        self.images: list[_Span] = []
        self.input_ids = torch.randint(8, 400, (1, length))
        self.keys = [(int(token), None) for token in self.input_ids[0]]

    def show_picture(self, config: Any, folder: Path) -> None:
        """A usual picture, as the processors of published models give it."""
        dims = read_dims(folder)
        vision = dims.vision
        assert vision is not None
        self.images = [_Span(4, dims.image_tokens)]
        token = getattr(config, "image_token_id", None) or config.image_token_index
        self.input_ids[0, 4 : 4 + dims.image_tokens] = token
        if vision.rotary:
            rows = round(PHOTO[1] / vision.patch_size / 2) * 2
            columns = vision.patches // rows
            pixels = torch.randn(vision.patches, 2 * 3 * vision.patch_size**2)
            grid = torch.tensor([[1, rows, columns]])
            self.model_inputs = {"pixel_values": pixels, "image_grid_thw": grid}
            self.input_ids[0, 3] = config.vision_start_token_id
            return
        side = config.vision_config.image_size
        tiles = vision.patches // (side // vision.patch_size) ** 2
        if vision.masked:
            mask = torch.ones(1, tiles, side, side, dtype=torch.long)
            pixels = torch.randn(1, tiles, 3, side, side)
            self.model_inputs = {"pixel_values": pixels, "pixel_attention_mask": mask}
        else:
            self.model_inputs = {"pixel_values": torch.randn(tiles, 3, side, side)}


class _NoText:
    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def _train(case: Case, loaded: Any) -> None:
    stage = StageConfig(
        method=case.method,
        projector=case.projector or case.method == "projector",
        vision_blocks=case.vision_blocks,
        row_tokens=case.row_tokens,
        micro_rows=0,
        optimizer=case.optimizer,
        learning_rate=1e-4,
        projector_learning_rate=1e-4,
        vision_learning_rate=1e-5,
        gradient_checkpointing=case.checkpointing,
    )
    recipe = FinetuneConfig(
        name="measured", stages=(stage,), lora=LoraOptions(rank=case.rank, targets=case.targets)
    )
    trainable = Trainable(loaded, recipe)
    groups = trainable.start_stage(stage)
    optimizers = build_optimizers(groups, case.optimizer, loaded.compute_dtype)
    steps = TrainStep(
        IsolatedAccelerator(torch.device("cpu")).accelerator,
        PackedLoss(loaded.model, loaded.compute_dtype),
        optimizers,
        [p for group in groups for p in group["params"]],
        clip=1.0,
        micro_rows=0,
        say=lambda line: None,
        parts=trainable.parameters_by_part(groups),
    )
    model = loaded.model
    model.eval()
    decoder = model.get_decoder()
    decoder.train()
    if case.checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    torch.use_deterministic_algorithms(True)
    for number in range(STEPS):
        torch.manual_seed(number)
        given = StepInput(_rows(case, model), ["made"], case.rows, case.rows * case.row_tokens)
        steps.step(given, 1.0, f"step {number}")


def _rows(case: Case, model: Any) -> list[RowInput]:
    config = model.config
    vocabulary = config.get_text_config().vocab_size
    rows = []
    for _ in range(case.rows):
        tokens = torch.randint(8, min(vocabulary, 400), (case.row_tokens,)).tolist()
        features = None
        if case.pictures:
            count = config.image_seq_length * case.pictures
            tokens[:count] = [config.image_token_id] * count
            encoder = model.model.encoder
            if case.vision_blocks:
                side = encoder.image_size
                features = torch.randn(case.pictures, 3, side, side)
            else:
                features = torch.randn(case.pictures, encoder.grid**2, encoder.width)
                features = features.to(model.dtype)
        asked = int(case.row_tokens * case.answers)
        labels = [IGNORED] * (case.row_tokens - asked) + tokens[-asked:]
        tree = Tree([], tuple(range(case.pictures)), [Branch(tokens, labels, 1.0)])
        rows.append(RowInput(collate([[tree]], case.row_tokens, 0), features))
    return rows


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _forget_peak() -> None:
    """The kernel's mark of the largest memory (VmHWM) begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


def in_process(pipe: Connection, case: Case, dtype: Dtype, folder: str) -> None:
    """In its own process: writes the model of a case if it is not there, else measures the case."""
    os.environ["MMCHAT_HOME"] = folder + "-home"
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stderr(nothing):
        if Path(folder).exists():
            pipe.send(measure(case, dtype, Path(folder)))
        elif case.shape in published.CONFIGS:
            config = published.CONFIGS[case.shape]
            pipe.send(published.write_headers(Path(folder), config, published.shapes(config)))
        else:
            pipe.send(write_model(SHAPES[case.shape], Path(folder)))
