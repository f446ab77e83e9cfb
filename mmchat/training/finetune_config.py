"""The recipe of an adapter: what is trained on which base, on what, how.

Read and checked before torch is imported. A value of 0, "" or "auto" is chosen when the data
and the base are known (`resolve`), and what was chosen is written beside the adapter.
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

FEW_SAMPLES_STEPS = 240
"""The least number of steps: a few dozen pictures are seen some ten times."""
MOST_STEPS = 4000
EPOCHS = 3.0
LARGE = 400_000_000
"""Parameters from which on the base stays 4-bit while it is trained."""


class DataConfig(Table, frozen=True):
    """What is learned from."""

    source: str = ""
    """Where it lies; "history" for the person's own rated and corrected answers."""
    images: str = ""
    """A folder that the data may name pictures in, beside its own."""
    sha256: str = ""
    """Over texts and pictures, filled in when it was read."""
    held_out: float = 0.15
    """Share of the pictures that are kept for measuring, where the data has no such part itself."""
    replay: float = -1.0
    """Share of each step's samples that are old material, against forgetting: -1 takes
    what the base offers, 0 none."""
    answers: tuple[Literal["good", "corrected"], ...] = ("good", "corrected")
    """Of one's own history."""
    cache_features: bool = True
    """Whether what the frozen vision encoder says of each picture is kept on the disk: 200 KB a
    picture of the built-in model, which is too much for a hundred thousand of them."""

    def __post_init__(self) -> None:
        require("data.held_out", self.held_out, 0 < self.held_out < 1, "above 0 and below 1")
        require(
            "data.replay",
            self.replay,
            self.replay == -1 or 0 <= self.replay < 1,
            "-1 or from 0 to below 1",
        )


class LoraOptions(Table, frozen=True):
    """Low-rank changes of the text model's linear layers (Hu et al. 2021, "LoRA"), by peft."""

    rank: int = 16
    alpha: float = 32.0
    """The change is scaled by alpha / rank (with rslora: / sqrt(rank))."""
    dropout: float = 0.0
    rslora: bool = False
    """Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA"."""
    dora: bool = False
    """Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation"."""
    targets: tuple[str, ...] = ()
    """Names of linear layers such as "q_proj"; none means all of the text model's blocks."""
    head: bool = False
    """`lm_head` too: never unless it is asked for."""

    def __post_init__(self) -> None:
        require("lora.rank", self.rank, self.rank >= 1, "at least 1")
        require("lora.alpha", self.alpha, 0 < self.alpha < math.inf, "a number above 0")
        require("lora.dropout", self.dropout, 0 <= self.dropout < 1, "from 0 to below 1")


class StageConfig(Table, frozen=True):
    """One stretch of training."""

    name: str = "adapter"
    method: Method = "auto"
    """`projector`: alignment, nothing else trains. `lora`, `qlora` (on a 4-bit base), `full`."""
    projector: bool | Literal["auto"] = "auto"
    """Whether the projector trains as well; `auto` does it for bases of mmchat's own kind. Published
    models have a projector that was aligned on far more pictures: theirs trains if it is asked for."""
    vision_blocks: int | Literal["all"] = 0
    """How many of the vision encoder's last blocks train; `all` is the whole encoder."""
    steps: int = 0
    epochs: float = 0.0
    """Instead of steps: how often every sample is seen."""
    batch: int = 16
    """Samples a step, over all processes: a sample is a picture with what is said about it."""
    row_tokens: int = 0
    """Length of a packed row, the same in all stages; the longest conversation that is learned from."""
    micro_rows: int = 0
    """Rows that are computed at once; fewer take less memory and give the same step."""
    learning_rate: float = 0.0
    """Of LoRA, or of the whole text model with `full`."""
    projector_learning_rate: float = 0.0
    vision_learning_rate: float = 0.0
    optimizer: OptimizerName = "auto"
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    decay: float = 0.3
    """With the schedule `wsd`: share of the steps, the last ones, in which it falls to 0."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""
    length_weight: float = 0.5
    """An answer's loss is divided by (its tokens) ** this: 0 counts every token the same, 1
    every answer."""
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_every: int = 0
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        at = f"Stage {self.name}: "
        blocks = self.vision_blocks
        require(at + "vision_blocks", blocks, blocks == "all" or blocks >= 0, "0 or more, or all")
        for field in (
            "steps",
            "row_tokens",
            "micro_rows",
            "checkpoint_every",
            "evaluate_every",
        ):
            value = getattr(self, field)
            require(at + field, value, value >= 0, "0 or more")
        for field in ("epochs", "weight_decay", "length_weight"):
            value = getattr(self, field)
            require(at + field, value, 0 <= value < math.inf, "0 or a number above it")
        for field in ("learning_rate", "projector_learning_rate", "vision_learning_rate"):
            value = getattr(self, field)
            require(at + field, value, 0 <= value < math.inf, "0 (chosen) or a number above it")
        require(at + "batch", self.batch, self.batch >= 1, "at least 1")
        require(at + "clip", self.clip, 0 < self.clip < math.inf, "a number above 0")
        require(at + "warmup", self.warmup, 0 <= self.warmup < 1, "from 0 to below 1")
        require(at + "decay", self.decay, 0 <= self.decay <= 1, "from 0 to 1")

    @property
    def rates(self) -> tuple[str, ...]:
        """The keys of the learning rates that count in this stage, that of its method first."""
        if self.method == "projector":
            rates = ["projector_learning_rate"]
        else:
            rates = ["learning_rate", *(["projector_learning_rate"] if self.projector else [])]
        return (*rates, *(["vision_learning_rate"] if self.vision_blocks else []))

    @property
    def rate(self) -> float:
        """The learning rate of its method: the one that is shown."""
        found: float = getattr(self, self.rates[0])
        return found


class FinetuneConfig(Table, frozen=True):
    """A whole recipe."""

    name: str = ""
    """Of the adapter that comes out."""
    model: str = ""
    """The base; empty is the settings' model."""
    base_hash: str = ""
    """Of the base's weights, filled in when it was found."""
    seed: int = 1
    data: DataConfig = DataConfig()
    lora: LoraOptions = LoraOptions()
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the figures are told too."""

    def __post_init__(self) -> None:
        require_seed(self.seed)
        names = [stage.name for stage in self.stages]
        if not names or len(names) != len(set(names)):
            raise RecipeError(
                f"The recipe's stages are named {', '.join(names) or 'not at all'}: it needs one or "
                "more, each with a name of its own, for a run goes on by them."
            )
        methods = {stage.method for stage in self.stages}
        if "full" in methods and len(methods) > 1 and methods - {"full", "projector"}:
            raise RecipeError(
                "A recipe trains the whole text model (full) or low-rank changes of it (lora, qlora), "
                "not both: make two recipes."
            )
        if {"lora", "qlora"} <= methods:
            raise RecipeError(
                "The base is either 4-bit while it is trained (qlora) or not (lora): take one of them "
                "for all stages."
            )
        lengths = sorted({stage.row_tokens for stage in self.stages if stage.row_tokens})
        if len(lengths) > 1:
            raise RecipeError(
                f"The stages' row_tokens are {', '.join(map(str, lengths))}: give all of them the same, for "
                "every stage learns from the same conversations."
            )

    @property
    def row_tokens(self) -> int:
        """Of every stage; 0 where it is still to be chosen."""
        return max(stage.row_tokens for stage in self.stages)


def read_config(file: Path | None, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Reads `file` (none: all defaults); each of `overrides` is `key=value` (`stages.0.batch=8`).

    `lora.rank=8` and the like are whole paths; a key of a stage alone (`batch=8`) means every stage.
    Raises RecipeError for what cannot be read, an unknown key (with the nearest known one) or a
    value that cannot be used.
    """
    tables = read_tables(file) if file is not None else {}
    stages = tables.setdefault("stages", [{}])
    count = len(stages) if isinstance(stages, list) else 0  # else `parse` tells what it is
    spread = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if key.strip() in StageConfig.__struct_fields__ and key.strip() != "name" and equals:
            spread += [f"stages.{n}.{key.strip()}={value}" for n in range(count)]
        else:
            spread.append(override)
    return parse(tables, FinetuneConfig, str(file) if file is not None else "", spread)


def config_hash(recipe: FinetuneConfig) -> str:
    """sha256 of the recipe's content, hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(recipe, order="sorted")).hexdigest()


def to_tables(recipe: FinetuneConfig) -> dict[str, Any]:
    """The recipe as TOML takes it."""
    tables: dict[str, Any] = msgspec.to_builtins(recipe)
    return tables


@dataclass(frozen=True, slots=True)
class Facts:
    """What has to be known of data and base to choose what the recipe leaves open."""

    samples: int
    """Of the training part."""
    longest: int
    """Tokens of the longest sample."""
    context: int
    """Tokens that the base can take."""
    hidden: int
    """Width of the text model."""
    parameters: int
    cuda: bool
    four_bit: bool
    """Whether the base is loaded in 4-bit."""
    has_projector: bool
    own_kind: bool
    """Whether it is a visual-prefix model."""
    replay: bool
    """Whether the base brings old material."""


def resolve(recipe: FinetuneConfig, facts: Facts) -> FinetuneConfig:
    """The recipe with nothing left to choose."""
    replay = recipe.data.replay
    if replay < 0:
        replay = 0.5 if facts.replay else 0.0
    data = msgspec.structs.replace(recipe.data, replay=replay)
    # Room for several samples a row: rows that are nearly full waste least.
    room = min(max(512, 64 * math.ceil(facts.longest / 64)), facts.context)
    rows = recipe.row_tokens or room
    stages = tuple(_resolve_stage(stage, facts, replay, rows) for stage in recipe.stages)
    return msgspec.structs.replace(recipe, data=data, stages=stages)


def starts_four_bit(recipe: FinetuneConfig, *, cuda: bool, parameters: int) -> bool:
    """Whether the base is to be loaded in 4-bit, if it can be: `auto` is qlora then."""
    methods = {stage.method for stage in recipe.stages}
    if "auto" in methods and "lora" not in methods:
        return cuda or parameters > LARGE or "qlora" in methods
    return "qlora" in methods


def own_samples(batch: int, replay: float) -> int:
    """Of a step's `batch` samples, those that are not old material: one at least."""
    return max(1, batch - round(batch * replay))


def _resolve_stage(stage: StageConfig, facts: Facts, replay: float, rows: int) -> StageConfig:
    chosen: dict[str, Any] = {}
    method = stage.method
    if method == "auto":
        method = "qlora" if facts.four_bit else "lora"
        chosen["method"] = method
    projector = stage.projector
    if method == "projector" and projector is False:
        raise RecipeError(
            f"Stage {stage.name} has method = projector and projector = false: take one of them out."
        )
    if not facts.has_projector and (method == "projector" or projector is True):
        raise RecipeError(
            f"Stage {stage.name} trains the projector, and the base has none, because it reads text "
            "only: use method = lora or qlora, and leave projector out."
        )
    if projector == "auto":
        chosen["projector"] = method == "projector" or (facts.has_projector and facts.own_kind)
    own = own_samples(stage.batch, replay)
    if not stage.steps:
        epochs = stage.epochs or EPOCHS
        steps = math.ceil(facts.samples * epochs / own)
        chosen["steps"] = steps if stage.epochs else min(max(steps, FEW_SAMPLES_STEPS), MOST_STEPS)
    if rows > facts.context:
        raise RecipeError(
            f"Stage {stage.name}: row_tokens = {rows} is more than the base's context of "
            f"{facts.context}: lower it."
        )
    chosen["row_tokens"] = rows
    steps = chosen.get("steps", stage.steps)
    # Small models want larger steps: 2e-4 is what LoRA takes at 4,096.
    rate = 2e-4 * math.sqrt(4096 / max(facts.hidden, 64))
    if not stage.learning_rate:
        chosen["learning_rate"] = rate if method != "full" else rate / 10
    if not stage.projector_learning_rate:
        chosen["projector_learning_rate"] = rate if method == "projector" else rate / 2
    if not stage.vision_learning_rate:
        chosen["vision_learning_rate"] = rate / 10
    if stage.optimizer == "auto":
        large = facts.cuda and facts.parameters > LARGE
        chosen["optimizer"] = "adamw8bit" if large else "adamw"
    if not stage.checkpoint_every:
        chosen["checkpoint_every"] = max(10, min(200, steps // 5))
    if not stage.evaluate_every:
        chosen["evaluate_every"] = max(10, math.ceil(steps / 8))
    return msgspec.structs.replace(stage, **chosen)
