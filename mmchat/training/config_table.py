"""Tables of a TOML file as typed structs, with errors that name the key and the nearest known one."""

import difflib
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mmchat.errors import RecipeError

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
