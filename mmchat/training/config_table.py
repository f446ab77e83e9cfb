"""Parses TOML tables into typed structs, with errors that name the key and the nearest known one."""

import difflib
import re
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mmchat.errors import RecipeError
from mmchat.field_errors import explain

_TableT = TypeVar("_TableT", bound="Table")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a recipe. An unknown key is an error that names the nearest known one."""


def require(key: str, value: object, valid: bool, rule: str) -> None:
    """Raises RecipeError unless `valid`."""
    if not valid:
        raise RecipeError(f"{key} = {value!r} cannot be used: it must be {rule}.")


def require_seed(seed: int) -> None:
    """Raises RecipeError for a seed that numpy or torch does not accept."""
    require("seed", seed, 0 <= seed < 2**63, "at least 0 and below 2**63")


def read_tables(file: Path) -> dict[str, Any]:
    """Reads the tables of a TOML file; raises RecipeError."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"The recipe {file} cannot be read ({error.strerror}): check the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {file} is not valid TOML: {error}.") from error


def parse(
    tables: dict[str, Any], table_type: type[_TableT], file: str, overrides: Sequence[str]
) -> _TableT:
    """Applies `overrides` (`key=value`) to the `tables` of `file` and converts them; raises RecipeError."""
    for override in overrides:
        _apply_override(tables, override)
    try:
        return msgspec.convert(tables, table_type, strict=False)
    except msgspec.ValidationError as error:
        source = f"The recipe {file}" if file else "The value of --set"
        problem = _unknown_key(error, table_type) or explain(error)
        raise RecipeError(f"{source} cannot be used: {problem}.") from error


def _apply_override(tables: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override}: write it as key=value.")
    node: Any = tables
    *parents, last = path.strip().split(".")
    try:
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        node[int(last) if isinstance(node, list) else last] = _parse_value(value.strip())
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise RecipeError(f"--set {override}: the recipe has no such key.") from error


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _unknown_key(error: msgspec.ValidationError, table_type: type[Table]) -> str:
    """What msgspec says about an unknown key, with the nearest known ones; "" for other errors."""
    unknown = re.match("Object contains unknown field `(.+?)`", str(error))
    if unknown is None:
        return ""
    known = _paths(table_type)
    near = set(difflib.get_close_matches(unknown[1], {_name(path) for path in known}, n=1))
    paths = [path for path in known if _name(path) in near]
    hint = f" (did you mean {' or '.join(paths)}?)" if paths else ""
    return f"there is no key {unknown[1]}{hint}"


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _paths(table_type: type[Table], prefix: str = "") -> list[str]:
    """Every key of the table and of the tables within it, as --set names it."""
    paths: list[str] = []
    for field in msgspec.structs.fields(table_type):
        paths.append(prefix + field.name)
        for inner in (field.type, *typing.get_args(field.type)):
            if isinstance(inner, type) and issubclass(inner, Table):
                is_list = inner is not field.type
                paths += _paths(inner, "" if is_list else f"{prefix}{field.name}.")
    return paths
