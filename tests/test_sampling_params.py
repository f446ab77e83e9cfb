"""The limits of the sampling parameters are the same in settings, client and command line."""

import math
from typing import Any

import click
import msgspec
import pytest

from mmchat.cli.ask import ask
from mmchat.client import Options
from mmchat.errors import EngineError, SettingsError
from mmchat.sampling_params import LIMITS, SamplingError, SamplingParams
from mmchat.settings import GenerationSettings, load_settings

ACCEPTED = [
    ("temperature", 0.0),
    ("temperature", 100.0),
    ("top_k", 0),
    ("top_p", 1.0),
    ("top_p", 1e-9),
    ("min_p", 0.0),
    ("min_p", 0.999),
    ("repetition_penalty", 100.0),
    ("max_tokens", 1),
    ("max_tokens", 2**31 - 1),
    ("seed", -(2**63)),
    ("seed", 2**63 - 1),
]
REFUSED = [
    ("temperature", -0.1),
    ("temperature", 200.0),
    ("temperature", math.inf),
    ("temperature", math.nan),
    ("top_k", -1),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("min_p", -0.1),
    ("min_p", 1.0),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 101.0),
    ("max_tokens", 0),
    ("max_tokens", 2**31),
    ("seed", 2**63),
]


@pytest.mark.parametrize(("name", "value"), ACCEPTED)
def test_a_value_within_its_limits_is_accepted(name: str, value: float) -> None:
    assert getattr(Options(**{name: value}), name) == value  # type: ignore[arg-type]
    settings = load_settings({f"generation.{name}": str(value)})
    assert getattr(settings.generation, name) == value


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_beyond_its_limits_is_refused(name: str, value: float) -> None:
    wrong: dict[str, Any] = {name: value}
    for make in (
        lambda: Options(**wrong),
        lambda: SamplingParams(**wrong),
        lambda: msgspec.structs.replace(Options(), **wrong),
    ):
        with pytest.raises(SamplingError, match=rf"^{name} is {value}, but must be .*\.$") as error:
            make()
        assert isinstance(error.value, EngineError) and error.value.parameter == name
    with pytest.raises(SettingsError, match=rf"generation\.{name} is {value}, but must be"):
        load_settings({f"generation.{name}": str(value)})


def test_every_parameter_has_its_limits_and_is_a_setting() -> None:
    assert set(LIMITS) == set(SamplingParams.__struct_fields__)
    assert set(Options.__struct_fields__) == {*LIMITS, "stop"}
    assert set(GenerationSettings.__struct_fields__) == {*LIMITS, "system"}


def test_the_options_of_ask_have_the_same_limits() -> None:
    options = {option.name: option for option in ask.params}
    context = click.Context(ask)
    for name in ("temperature", "max_tokens", "seed"):
        low, high = LIMITS[name][:2]
        for value in (low, high):
            assert options[name].process_value(context, str(value)) == value
        for value in (low - 1, high + 1):
            with pytest.raises(click.BadParameter):
                options[name].process_value(context, str(value))
