"""`mmchat doctor`: checks the machine and the installation, and gives advice."""

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import click

import mmchat
from mmchat.cli.engine import as_object, engine_status
from mmchat.cli.inspect_model import load_parts, parts_table
from mmchat.cli.models import fit_facts
from mmchat.cli.output import Progress, json_object_option, say, say_json, say_table
from mmchat.display.numbers import format_size
from mmchat.errors import MmchatError
from mmchat.memory.machine import (
    Machine,
    WeightFormat,
    available_memory,
    cpu_flags,
    cpu_name,
    this_machine,
    weight_format_of,
)
from mmchat.memory.memory_fit import chat_fit
from mmchat.memory.model_dims import read_dims
from mmchat.model import catalogue
from mmchat.settings import Settings, load_settings, paths

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "peft", "accelerate", "textual", "pillow")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "neon", "bf16")
_LITTLE_DISK = 2_000_000_000


@click.command()
@click.option("--no-load", is_flag=True, help="Do not load the model to inspect its parts.")
@json_object_option
def doctor(no_load: bool, as_json: bool) -> None:
    """Check this machine and the installation, and say what to do.

    \b
    Example:
      mmchat doctor
    """
    settings = load_settings()
    progress = Progress()
    progress.show("Checking the machine")
    found = check_machine(settings)
    if no_load:
        model = found["model"]
        if model.get("fits") is False:
            found["advice"].append(
                f"{model['name']} {model['reason']}: close other programs, or choose a smaller model."
            )
    else:
        progress.show(f"Loading {settings.model.name} to inspect its parts")
        try:
            found["model"] |= load_parts(settings.model)
        except MmchatError as error:
            found["model"]["problem"] = str(error)
            found["advice"].append(str(error))
    progress.clear()
    if as_json:
        say_json(found)
    else:
        print_report(found)


def check_machine(settings: Settings) -> dict[str, Any]:
    """The report without loading the model; `advice` has one sentence for each problem."""
    advice: list[str] = []
    compute = _compute(settings, advice)
    machine, form = this_machine(settings.model), weight_format_of(settings.model.quantization)
    return {
        "mmchat": mmchat.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "cpu": _cpu(),
        "compute": compute,
        "memory": _memory(),
        "folders": _folders(advice),
        "engine": _engine(settings, advice),
        "fits": _fitting_offers(machine, form),
        "model": {
            "name": settings.model.name,
            "adapter": settings.model.adapter,
            **_fit(settings.model.name, machine, form),
        },
        "advice": advice,
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu() -> dict[str, Any]:
    import psutil

    flags = cpu_flags()
    return {
        "name": cpu_name() or platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "threads": os.cpu_count() or 1,
        "flags": [flag for flag in _FLAGS if flag in flags],
    }


def _compute(settings: Settings, advice: list[str]) -> dict[str, Any]:
    """The devices, and the dtype of the selected one; empty if torch does not work."""
    try:
        import torch
    except (ImportError, OSError) as error:
        advice.append(
            f"torch cannot be imported ({error}), so no model can be loaded: reinstall it."
        )
        return {}
    from mmchat.model.quantization import compute_dtype, works

    cuda = torch.cuda.is_available()
    mps = bool(torch.backends.mps.is_available())
    requested = settings.model.device
    used = ("cuda" if cuda else "cpu") if requested == "auto" else requested
    if (used == "cuda" and not cuda) or (used == "mps" and not mps):
        advice.append(f"There is no {used} device here: set model.device to auto.")
        used = "cpu"
    rocm = bool(torch.version.hip)
    if used == "mps" or (used == "cuda" and rocm):
        kind = "ROCm" if rocm else "MPS"
        advice.append(
            f"mmchat is tested on CPUs and NVIDIA GPUs. {kind} may work, but is not tested: set "
            "model.device to cpu if answers look wrong."
        )
    device = torch.device(used)
    four_bit = works(device)
    if not four_bit:
        advice.append(
            f"bitsandbytes does not work on {used}, so models are loaded unquantized: "
            "reinstall it, or set model.quantization to bf16 or fp32."
        )
    gpus = []
    for number in range(torch.cuda.device_count() if cuda else 0):
        card = torch.cuda.get_device_properties(number)
        gpus.append({"name": card.name, "memory_bytes": int(card.total_memory)})
    return {
        "device": used,
        "untried": used == "mps" or (used == "cuda" and rocm),
        "gpus": gpus,
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "four_bit_works": four_bit,
    }


def _memory() -> dict[str, int]:
    import psutil

    return {"total": int(psutil.virtual_memory().total), "available": available_memory()}


def _folders(advice: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    places = paths()
    for name in ("data", "config", "cache", "runtime"):
        folder: Path = getattr(places, name)
        there = next(part for part in (folder, *folder.parents) if part.exists())
        writable = os.access(there, os.W_OK | os.X_OK)
        found[name] = {"path": str(folder), "writable": writable}
        if not writable:
            advice.append(
                f"The folder {folder} cannot be written to: make {there} writable, "
                "or set MMCHAT_HOME to a folder that is."
            )
        if name == "data":
            free = shutil.disk_usage(there).free
            found[name]["free_bytes"] = free
            if free < _LITTLE_DISK:
                advice.append(
                    f"Only {format_size(free)} are free on the disk of {there}: free some space."
                )
    return found


def _engine(settings: Settings, advice: list[str]) -> dict[str, Any]:
    try:
        status = asyncio.run(engine_status(settings))
    except MmchatError as error:
        advice.append(str(error))
        return {"problem": str(error)}
    if status is not None and status.error:
        advice.append(f"The engine's last load failed: {status.error}")
    return as_object(status)


def _fitting_offers(machine: Machine, form: WeightFormat) -> list[str]:
    """The models of the catalogue that fit this machine."""
    dims = catalogue.offered_dims()
    names = [offer.hub_id for offer in catalogue.OFFERS]
    return [name for name in names if chat_fit(dims[name], machine, form).fits]


def _fit(name: str, machine: Machine, form: WeightFormat) -> dict[str, Any]:
    """Whether the selected model fits; empty if it does not exist, which loading reports."""
    with contextlib.suppress(MmchatError):
        return fit_facts(chat_fit(read_dims(catalogue.resolve_model(name)), machine, form))
    return {}


def print_report(found: dict[str, Any]) -> None:
    """Prints the result of `check_machine` as text."""
    cpu, compute, memory, engine = (found[key] for key in ("cpu", "compute", "memory", "engine"))
    data, model = found["folders"]["data"], found["model"]
    running = engine.get("problem") or (
        f"running, {engine['model'] or 'no model'} ({engine['state']}), {format_size(engine['memory_bytes'])}"
        if engine
        else "not running"
    )
    versions = found["libraries"]
    say_table(
        [
            ("mmchat", f"{found['mmchat']} on Python {found['python']}, {found['system']}"),
            ("libraries", ", ".join(f"{k} {v or 'missing'}" for k, v in versions.items())),
            ("cpu", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads"),
            ("cpu features", ", ".join(cpu["flags"]) or "none of interest"),
            *_computing(compute),
            (
                "memory",
                f"{format_size(memory['available'])} free of {format_size(memory['total'])}",
            ),
            ("files", f"{data['path']}, {format_size(data['free_bytes'])} free"),
            ("engine", running),
            *([("model", f"{model['name']} {model['reason']}")] if "reason" in model else []),
            (
                "models that fit",
                ", ".join(name.split("/")[-1] for name in found["fits"]) or "none in the catalogue",
            ),
        ]
    )
    if "parts" in model:
        say()
        say(
            f"{model['name']}: {model['quantization']}, computes in {model['compute_dtype']} on "
            f"{model['device']}, {format_size(model['memory_bytes'])}"
        )
        say_table(parts_table(model))
    say()
    if not found["advice"]:
        say("No problems were found.")
    for sentence in found["advice"]:
        say(f"- {sentence}")


def _computing(compute: dict[str, Any]) -> list[tuple[str, str]]:
    if not compute:
        return [("computes", "not at all: torch cannot be imported")]
    where = f"on {compute['device']}{' (untested)' if compute['untried'] else ''}"
    return [
        *(("gpu", f"{gpu['name']}, {format_size(gpu['memory_bytes'])}") for gpu in compute["gpus"]),
        ("computes", f"{where} in {compute['dtype']} (torch uses {compute['kernels']})"),
        ("4-bit", "works" if compute["four_bit_works"] else "does not work"),
    ]
