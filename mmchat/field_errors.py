"""msgspec's messages about a wrong value, in the words of a person who edits a file of settings."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import msgspec

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "empty",
}
_EXPECTED = re.compile(r"Expected `(.+?)`, got `(.+?)`")
_ENUM = re.compile(r"Invalid enum value (.+)")


def explain(error: "msgspec.ValidationError", section: str = "") -> str:
    """What is wrong with which value: "lora.rank must be a whole number, not text".

    section: the table that was converted, if it is within another one.
    """
    problem, _, place = str(error).partition(" - at `$")
    steps = [section, *re.findall(r"[^.\[\]`]+", place)]
    key = ".".join(step for step in steps if step) or "the content"
    if expected := _EXPECTED.fullmatch(problem):
        wanted, got = (
            " or ".join(_TYPES.get(one, one) for one in types.split(" | "))
            for types in expected.groups()
        )
        return f"{key} must be {wanted}, not {got}"
    if value := _ENUM.fullmatch(problem):
        return f"{key} cannot be {value[1]}"
    return f"{key}: {problem[:1].lower()}{problem[1:]}"
