"""A recipe: everything that a training run depends on, in one TOML file.

It is read and checked before torch is imported, and saved beside what it made.
"""

import difflib
import hashlib
import math
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from mmchat.errors import RecipeError

Part = Literal["vision_tower", "projector", "language_model"]
Objective = Literal["cells", "answers"]
_Kind = TypeVar("_Kind", bound="Table")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a recipe: an unknown key in it is an error that names the nearest one."""


def require(field: str, value: object, holds: bool, wanted: str) -> None:
    """Raises RecipeError unless `holds`."""
    if not holds:
        raise RecipeError(f"{field} = {value!r} cannot be used, it has to be {wanted}.")


def require_seed(seed: int) -> None:
    """Raises RecipeError for what numpy and torch cannot draw from."""
    require("seed", seed, 0 <= seed < 2**63, "from 0 to below 2**63")


class Base(Table, frozen=True):
    """A base built from random weights.

    The tables hold the fields of `GridVisionConfig`, of the text model's
    configuration (with `model_type`) and the `projector_*` fields of
    `VisualPrefixConfig`.
    """

    vocabulary_size: int
    """Size of the byte-level BPE that is trained on the data's text."""
    vision: dict[str, Any]
    text: dict[str, Any]
    projector: dict[str, Any]


class Stage(Table, frozen=True):
    """One stretch of training with one objective."""

    name: str
    objective: Objective
    """`cells`: label every cell of the tower's grid. `answers`: say the assistant's words."""
    trains: tuple[Part, ...]
    steps: int
    rows: int
    """Pictures (`cells`) or packed rows (`answers`) a step."""
    learning_rate: float
    row_tokens: int = 512
    """Length of a packed row, in tokens."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises from 0."""
    decay: float = 0.3
    """Share of the steps, the last ones, in which it falls to 0."""
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient."""
    length_weight: float = 0.75
    """A dialog's loss is divided by (its answer tokens) ** this: 0 counts every token
    the same, so that long captions starve the short answers; 1 every dialog."""
    checkpoint_every: int = 500
    evaluate_every: int = 500

    def __post_init__(self) -> None:
        at = f"Stage {self.name}: "
        for field in ("steps", "rows", "row_tokens", "checkpoint_every", "evaluate_every"):
            value = getattr(self, field)
            require(at + field, value, value >= 1, "at least 1")
        for field in ("learning_rate", "clip"):
            value = getattr(self, field)
            require(at + field, value, 0 < value < math.inf, "a number above 0")
        require(at + "warmup", self.warmup, 0 <= self.warmup < 1, "from 0 to below 1")
        require(at + "decay", self.decay, 0 <= self.decay <= 1, "from 0 to 1")
        for field in ("weight_decay", "length_weight"):
            value = getattr(self, field)
            require(at + field, value, 0 <= value < math.inf, "0 or a number above it")
        once = len(self.trains) == len(set(self.trains)) > 0
        require(at + "trains", self.trains, once, "one part or more, each once")


class Recipe(Table, frozen=True):
    """What to train, on what, how, in which order."""

    name: str
    seed: int
    base: Base
    stages: tuple[Stage, ...]
    compile: bool = False
    """torch.compile the text model: faster where a C++ compiler is at hand."""

    def __post_init__(self) -> None:
        require_seed(self.seed)
        names = [stage.name for stage in self.stages]
        if not names:
            raise RecipeError("The recipe has no stage, so it would train nothing: add [[stages]].")
        if len(names) != len(set(names)):
            raise RecipeError(
                f"The recipe's stages are named {', '.join(names)}: give each a name of its own, "
                "for a run goes on by them."
            )


def read_recipe(file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads `file`; each of `overrides` is `key=value` (`stages.1.steps=200`).

    Raises RecipeError for what cannot be read, an unknown key (with the nearest
    known one) or a value that cannot be used.
    """
    return parse(read_tables(file), Recipe, str(file), overrides)


def read_tables(file: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises RecipeError."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"The recipe {file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {file} is not valid TOML: {error}.") from error


def parse(
    tables: dict[str, Any], kind: type[_Kind], called: str, overrides: Sequence[str]
) -> _Kind:
    """`tables`, changed by `overrides` (`key=value`), as a recipe of `kind`; raises RecipeError."""
    for override in overrides:
        _override(tables, override)
    try:
        return msgspec.convert(tables, kind, strict=False)
    except msgspec.ValidationError as error:
        what = f"The recipe {called}" if called else "What --set says"
        problem = _nearest(str(error), kind)
        raise RecipeError(f"{what} cannot be used: {problem}.") from error


def recipe_hash(recipe: Recipe) -> str:
    """sha256 of the recipe's content, hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(recipe, order="sorted")).hexdigest()


def _override(tables: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override}: write it as key=value.")
    at: Any = tables
    *parents, last = path.strip().split(".")
    try:
        for name in parents:
            at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
        at[int(last) if isinstance(at, list) else last] = _value(value.strip())
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise RecipeError(f"--set {override}: the recipe has no such place.") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _nearest(problem: str, kind: type[Table]) -> str:
    """Adds the nearest known key to msgspec's message about an unknown one."""
    if "unknown field" not in problem:
        return problem
    name = problem.split("`")[1]
    near = difflib.get_close_matches(name, sorted(_keys(kind)), n=1)
    return problem + (f" (did you mean {near[0]}?)" if near else "")


def _keys(kind: type[Table]) -> set[str]:
    """Every key of a recipe of `kind`, in all its tables."""
    keys: set[str] = set()
    for field in msgspec.structs.fields(kind):
        keys.add(field.name)
        for part in (field.type, *typing.get_args(field.type)):
            if isinstance(part, type) and issubclass(part, Table):
                keys |= _keys(part)
    return keys
