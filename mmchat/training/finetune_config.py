"""The recipe of a run: which base is trained on what data, and how.

It is read and checked before torch is imported. Values of 0, "" or "auto" are chosen when data and
base are known (`resolve`), and the resolved recipe is saved beside the adapter.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from mmchat.errors import RecipeError
from mmchat.training.config_table import Table, parse, read_tables, require, require_seed

Method = Literal["auto", "projector", "lora", "qlora", "full"]
OptimizerName = Literal["auto", "adamw", "adamw8bit", "muon"]
Schedule = Literal["cosine", "linear", "constant", "wsd"]
LORA_METHODS = ("lora", "qlora")

MIN_STEPS = 240
"""The minimum number of steps, so that a few dozen pictures are seen about ten times."""
MAX_STEPS = 4000
DEFAULT_EPOCHS = 3.0
LARGE_MODEL_PARAMETERS = 400_000_000
"""Above this number of parameters, the base stays 4-bit during training."""


class DataConfig(Table, frozen=True):
    """The training data."""

    source: str = ""
    """Its path; "history" for the user's own rated and corrected answers."""
    images: str = ""
    """A second folder for the pictures that the data names."""
    sha256: str = ""
    """Hash of texts and pictures, filled in when the data is read."""
    held_out: float = 0.15
    """Share of the pictures that is held out, unless the data has its own held-out part."""
    replay: float = -1.0
    """Share of replay samples in each step, against forgetting: -1 uses the base's default, 0 none."""
    answers: tuple[Literal["good", "corrected"], ...] = ("good", "corrected")
    """Which answers of the history are used."""
    cache_features: bool = True
    """Whether the frozen vision encoder's features are cached on the disk: 200 KB per picture for the
    built-in model, which is too much for a hundred thousand pictures."""

    def __post_init__(self) -> None:
        require("data.held_out", self.held_out, 0 < self.held_out < 1, "above 0 and below 1")
        require(
            "data.replay",
            self.replay,
            self.replay == -1 or 0 <= self.replay < 1,
            "-1, or at least 0 and below 1",
        )


class LoraOptions(Table, frozen=True):
    """LoRA on the text model's linear layers (Hu et al. 2021, "LoRA"), by peft."""

    rank: int = 16
    alpha: float = 32.0
    """The change is scaled by alpha / rank (with rslora: / sqrt(rank))."""
    dropout: float = 0.0
    rslora: bool = False
    """Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA"."""
    dora: bool = False
    """Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation"."""
    targets: tuple[str, ...] = ()
    """Names of linear layers, such as "q_proj"; none means all in the text model's blocks."""
    head: bool = False
    """Whether `lm_head` gets LoRA too."""

    def __post_init__(self) -> None:
        require("lora.rank", self.rank, self.rank >= 1, "at least 1")
        require("lora.alpha", self.alpha, 0 < self.alpha < math.inf, "a number above 0")
        require("lora.dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1")


class StageConfig(Table, frozen=True):
    """A stage of training."""

    name: str = "adapter"
    method: Method = "auto"
    """`projector` (alignment: nothing else trains), `lora`, `qlora` (on a 4-bit base) or `full`."""
    projector: bool | Literal["auto"] = "auto"
    """Whether the projector trains too; `auto` means for visual-prefix models. The projector of a
    published model was aligned on far more pictures, so it only trains if this is true."""
    vision_blocks: int | Literal["all"] = 0
    """How many of the vision encoder's last blocks train; `all` is the whole encoder."""
    steps: int = 0
    epochs: float = 0.0
    """How often every sample is seen; an alternative to `steps`."""
    batch: int = 16
    """Samples per step, over all processes. A sample is a picture with its conversations."""
    row_tokens: int = 0
    """Length of a packed row and maximum length of a conversation; the same in all stages."""
    micro_rows: int = 0
    """Rows that are computed at once. Fewer need less memory and give the same step."""
    learning_rate: float = 0.0
    """For LoRA, or for the text model with `full`."""
    projector_learning_rate: float = 0.0
    vision_learning_rate: float = 0.0
    optimizer: OptimizerName = "auto"
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    decay: float = 0.3
    """With the schedule `wsd`: share of the steps, at the end, in which it falls to 0."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Maximum norm of the gradient."""
    length_weight: float = 0.5
    """An answer's loss is divided by (its tokens) ** this: with 0 every token counts the same, with 1
    every answer."""
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_every: int = 0
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        prefix = f"Stage {self.name}: "
        blocks = self.vision_blocks
        require(
            prefix + "vision_blocks", blocks, blocks == "all" or blocks >= 0, "0 or more, or all"
        )
        for field in ("steps", "row_tokens", "micro_rows", "checkpoint_every", "evaluate_every"):
            value = getattr(self, field)
            require(prefix + field, value, value >= 0, "0 or more")
        for field in ("epochs", "weight_decay", "length_weight"):
            value = getattr(self, field)
            require(prefix + field, value, 0 <= value < math.inf, "a finite number, 0 or more")
        for field in ("learning_rate", "projector_learning_rate", "vision_learning_rate"):
            value = getattr(self, field)
            require(
                prefix + field, value, 0 <= value < math.inf, "a finite number, or 0 for automatic"
            )
        require(prefix + "batch", self.batch, self.batch >= 1, "at least 1")
        require(prefix + "clip", self.clip, 0 < self.clip < math.inf, "a number above 0")
        require(prefix + "warmup", self.warmup, 0 <= self.warmup < 1, "at least 0 and below 1")
        require(prefix + "decay", self.decay, 0 <= self.decay <= 1, "from 0 to 1")

    @property
    def rates(self) -> tuple[str, ...]:
        """The keys of the learning rates that this stage uses, that of its method first."""
        if self.method == "projector":
            rates = ["projector_learning_rate"]
        else:
            rates = ["learning_rate", *(["projector_learning_rate"] if self.projector else [])]
        return (*rates, *(["vision_learning_rate"] if self.vision_blocks else []))

    @property
    def rate(self) -> float:
        """The learning rate of the stage's method."""
        rate: float = getattr(self, self.rates[0])
        return rate


class FinetuneConfig(Table, frozen=True):
    """A complete recipe."""

    name: str = ""
    """The adapter's name."""
    model: str = ""
    """The base; "" is the settings' model."""
    base_hash: str = ""
    """Hash of the base's weights, filled in when the recipe is resolved."""
    seed: int = 1
    data: DataConfig = DataConfig()
    lora: LoraOptions = LoraOptions()
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the metrics are also sent."""

    def __post_init__(self) -> None:
        require_seed(self.seed)
        names = [stage.name for stage in self.stages]
        if not names:
            raise RecipeError("The recipe has no stages: add at least one [[stages]] table.")
        if len(names) != len(set(names)):
            raise RecipeError(
                f"The recipe's stages are named {', '.join(names)}: give each its own name, because a run "
                "is resumed by it."
            )
        methods = {stage.method for stage in self.stages}
        if "full" in methods and len(methods) > 1 and methods - {"full", "projector"}:
            raise RecipeError(
                "A recipe trains either the whole text model (full) or LoRA (lora, qlora), not both: "
                "write two recipes."
            )
        if {"lora", "qlora"} <= methods:
            raise RecipeError(
                "The base is either 4-bit during training (qlora) or not (lora): use one of them in "
                "all stages."
            )
        lengths = sorted({stage.row_tokens for stage in self.stages if stage.row_tokens})
        if len(lengths) > 1:
            raise RecipeError(
                f"The stages' row_tokens are {', '.join(map(str, lengths))}: use the same value in all, "
                "because all stages train on the same conversations."
            )

    @property
    def row_tokens(self) -> int:
        """The value of every stage; 0 if it is not resolved yet."""
        return max(stage.row_tokens for stage in self.stages)


def read_config(file: Path | None, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Reads `file` (None: all defaults) and applies `overrides`, each of the form `key=value`.

    Keys are paths (`lora.rank=8`, `stages.0.batch=8`); a stage's key without a path (`batch=8`) applies
    to every stage. Raises RecipeError if the file cannot be read, a key is unknown (with the nearest
    known one) or a value cannot be used.
    """
    tables = read_tables(file) if file is not None else {}
    stages = tables.setdefault("stages", [{}])
    count = len(stages) if isinstance(stages, list) else 0  # otherwise `parse` reports it
    expanded = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if key.strip() in StageConfig.__struct_fields__ and key.strip() != "name" and equals:
            expanded += [f"stages.{n}.{key.strip()}={value}" for n in range(count)]
        else:
            expanded.append(override)
    return parse(tables, FinetuneConfig, str(file) if file is not None else "", expanded)


def config_hash(recipe: FinetuneConfig) -> str:
    """Hexadecimal sha256 of the recipe's content."""
    return hashlib.sha256(msgspec.json.encode(recipe, order="sorted")).hexdigest()


def to_tables(recipe: FinetuneConfig) -> dict[str, Any]:
    """The recipe as tables for a TOML file."""
    tables: dict[str, Any] = msgspec.to_builtins(recipe)
    return tables


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The properties of data and base that `resolve` uses."""

    samples: int
    """Training samples."""
    longest: int
    """Tokens of the longest sample."""
    context: int
    """The base's maximum number of tokens."""
    hidden: int
    """The text model's hidden size."""
    parameters: int
    cuda: bool
    four_bit: bool
    """Whether the base is loaded in 4-bit."""
    has_projector: bool
    visual_prefix: bool
    """Whether the base is a visual-prefix model."""
    replay: bool
    """Whether the base has replay data."""


def resolve(recipe: FinetuneConfig, info: RunInfo) -> FinetuneConfig:
    """Chooses every value that the recipe leaves open; raises RecipeError if it does not fit the base."""
    replay = recipe.data.replay
    if replay < 0:
        replay = 0.5 if info.replay else 0.0
    data = msgspec.structs.replace(recipe.data, replay=replay)
    # Room for several samples per row, because full rows waste the least.
    default = min(max(512, 64 * math.ceil(info.longest / 64)), info.context)
    row_tokens = recipe.row_tokens or default
    stages = tuple(_resolve_stage(stage, info, replay, row_tokens) for stage in recipe.stages)
    return msgspec.structs.replace(recipe, data=data, stages=stages)


def should_quantize(recipe: FinetuneConfig, *, cuda: bool, parameters: int) -> bool:
    """Whether to load the base in 4-bit, if possible. The method `auto` is then qlora."""
    methods = {stage.method for stage in recipe.stages}
    if "auto" in methods and "lora" not in methods:
        return cuda or parameters > LARGE_MODEL_PARAMETERS or "qlora" in methods
    return "qlora" in methods


def new_samples_per_step(batch: int, replay: float) -> int:
    """How many of a step's `batch` samples are not replay samples; at least one."""
    return max(1, batch - round(batch * replay))


def _resolve_stage(
    stage: StageConfig, info: RunInfo, replay: float, row_tokens: int
) -> StageConfig:
    chosen: dict[str, Any] = {}
    method = stage.method
    if method == "auto":
        method = "qlora" if info.four_bit else "lora"
        chosen["method"] = method
    projector = stage.projector
    if method == "projector" and projector is False:
        raise RecipeError(
            f"Stage {stage.name} has method = projector and projector = false: remove one of them."
        )
    if not info.has_projector and (method == "projector" or projector is True):
        raise RecipeError(
            f"Stage {stage.name} trains the projector, but the base has none, because it reads text "
            "only: use method = lora or qlora, and remove projector."
        )
    if projector == "auto":
        chosen["projector"] = method == "projector" or (info.has_projector and info.visual_prefix)
    new = new_samples_per_step(stage.batch, replay)
    if not stage.steps:
        epochs = stage.epochs or DEFAULT_EPOCHS
        steps = math.ceil(info.samples * epochs / new)
        chosen["steps"] = steps if stage.epochs else min(max(steps, MIN_STEPS), MAX_STEPS)
    if row_tokens > info.context:
        raise RecipeError(
            f"Stage {stage.name}: row_tokens = {row_tokens} is more than the base's context of "
            f"{info.context}: lower it."
        )
    chosen["row_tokens"] = row_tokens
    steps = chosen.get("steps", stage.steps)
    # Small models need larger learning rates; 2e-4 is usual for LoRA at a hidden size of 4,096.
    rate = 2e-4 * math.sqrt(4096 / max(info.hidden, 64))
    if not stage.learning_rate:
        chosen["learning_rate"] = rate if method != "full" else rate / 10
    if not stage.projector_learning_rate:
        chosen["projector_learning_rate"] = rate if method == "projector" else rate / 2
    if not stage.vision_learning_rate:
        chosen["vision_learning_rate"] = rate / 10
    if stage.optimizer == "auto":
        large = info.cuda and info.parameters > LARGE_MODEL_PARAMETERS
        chosen["optimizer"] = "adamw8bit" if large else "adamw"
    if not stage.checkpoint_every:
        chosen["checkpoint_every"] = max(10, min(200, steps // 5))
    if not stage.evaluate_every:
        chosen["evaluate_every"] = max(10, math.ceil(steps / 8))
    return msgspec.structs.replace(stage, **chosen)
