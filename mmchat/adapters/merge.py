"""Merges an adapter into its base: the result is a complete model folder for any program.

LoRA is merged in float32 into the published weights and rounded to their dtype, never into 4-bit
weights, which would lose the change. The result is quantized again when it is loaded, so its logits are
compared with those of the base with the adapter.
"""

import gc
import hashlib
import io
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmchat.adapters.active import ActiveAdapter, AdapterTensors, read_adapter
from mmchat.adapters.card import Card, check_adapter, find_adapter, read_card
from mmchat.adapters.compatibility import require_base
from mmchat.display.numbers import format_size
from mmchat.errors import MmchatError, ModelError
from mmchat.memory.machine import WeightFormat
from mmchat.model.catalogue import Installed, add_folder, require_free
from mmchat.model.load_plan import plan_load, torch_device
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import LoadProgress, load_model, load_planned, loading_progress
from mmchat.model.quantization import compute_dtype, works
from mmchat.model_files import tensors
from mmchat.prompt.model_inputs import build_prompt
from mmchat.turns import ImagePart, Turn

MAX_SHARD_SIZE = "4900MB"
_RESERVE_BYTES = 500_000_000  # stay free on the disk
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# Configuration and tokenizer files, which are copied; never code.
_COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_WRITTEN_BY_TRANSFORMERS = ("config.json", "generation_config.json")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_QUESTIONS = (
    "Hello! What can you do?",
    "Name three colours and three shapes.",
    "What can you see in this picture?",
)


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """How much the merged model's logits differ from those of its base with the adapter."""

    form: WeightFormat
    """How both were loaded."""
    dtype: str
    """The compute dtype of both."""
    largest: float
    mean: float
    logits: int
    """How many were compared."""
    same_token: float
    """The share of positions at which both predict the same token, from 0 to 1."""
    problem: str = ""
    """Why they could not be compared; "" if they were."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The merged model, and how it differs from its base with the adapter."""

    model: Installed
    card: Card
    base: str
    dtype: str
    differences: tuple[LogitDifference, ...]


def merge_adapter(
    name: str,
    out: Path,
    model_name: str = "",
    progress: LoadProgress = lambda what, fraction: None,
) -> MergeResult:
    """Merges the adapter `name` into its base and writes the model to the new folder `out`.

    The model is added to the user's own as `model_name`, by default the folder's name. Raises
    AdapterError if the adapter or its base cannot be used; ModelError if the folder or the name is
    taken, the disk is too full, or the base cannot be loaded.
    """
    card = read_card(find_adapter(name))
    base, base_folder = require_base(card)
    check_adapter(name, base, card.base.hash)
    out = out.absolute()
    require_free(model_name or out.name, out)
    if out.exists() or out.is_symlink():
        raise ModelError(f"{out} already exists: choose a new folder.")
    _check_disk_space(base_folder, out)
    dtype = _stored_dtype(base_folder)
    plan = plan_load(base, quantization=_unquantized_form(dtype), device="cpu")
    loaded = load_planned(replace(plan, dtype=dtype), progress)
    _merge(loaded, read_adapter(loaded, name, torch.float32))
    _write(loaded, card, out, progress)
    del loaded
    gc.collect()
    model = add_folder(out, model_name)
    device = torch_device("auto")
    forms: list[WeightFormat] = [_unquantized_form(compute_dtype(device))]
    if works(device):
        forms.insert(0, "4bit")
    differences = tuple(_compare(form, base, name, str(out), progress) for form in forms)
    return MergeResult(model, card, base, str(dtype).removeprefix("torch."), differences)


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def _merge(loaded: LoadedModel, adapter: AdapterTensors) -> None:
    """Changes the weights of the loaded base for good."""
    for place, tensor in adapter.swaps:
        place.data = tensor
    for layer, delta in adapter.lora:
        try:
            weight, bias = delta.merged(layer)
        except ValueError as error:
            raise ModelError(
                f"The adapter cannot be merged into {loaded.name}: {error}."
            ) from error
        _untie(loaded.model, layer)
        layer.weight.data = weight.to(layer.weight.dtype).contiguous()
        if bias is not None:
            layer.bias.data = bias.to(layer.bias.dtype)


def _untie(model: Any, layer: nn.Module) -> None:
    """Gives a tied head its own weight, because the embedding must not change with it."""
    embedding = model.get_input_embeddings()
    if layer.weight is not embedding.weight:
        return
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _write(loaded: LoadedModel, card: Card, out: Path, progress: LoadProgress) -> None:
    """Writes a temporary folder and renames it when it is complete."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".merge-", dir=out.parent))
        try:
            with loading_progress("writing", progress):
                loaded.model.save_pretrained(scratch, max_shard_size=MAX_SHARD_SIZE)
            for file in sorted(loaded.folder.iterdir()):
                copied = file.suffix in _COPIED_SUFFIXES and not file.name.endswith(".index.json")
                copied |= file.name.upper().startswith(_LICENCES)
                if file.is_file() and copied and file.name not in _WRITTEN_BY_TRANSFORMERS:
                    shutil.copyfile(file, scratch / file.name)
            (scratch / "README.md").write_text(_readme(loaded, card), encoding="utf-8")
            for file in scratch.iterdir():
                file.chmod(0o600)
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"{out} cannot be written ({error.strerror or error}): free some disk space, or choose another "
            "folder."
        ) from error


def _readme(loaded: LoadedModel, card: Card) -> str:
    return (
        f"# {loaded.name} with {card.name}\n\n"
        f"Made by `mmchat adapters merge`: the adapter {card.name} (trained: "
        f"{', '.join(card.trained) or 'unknown'}) is part of these weights.\n\n"
        f"- base: {card.base.id}, weights {card.base.hash}\n"
        f"- dtype: {str(loaded.compute_dtype).removeprefix('torch.')}\n\n"
        "The licences of the base and of the adapter apply.\n"
    )


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of the base's weights."""
    counts: Counter[str] = Counter()
    for tensor in tensors(folder):
        counts[tensor.dtype] += tensor.elements
    return _DTYPES.get(counts.most_common(1)[0][0], torch.bfloat16)


def _unquantized_form(dtype: torch.dtype) -> WeightFormat:
    return "fp32" if dtype == torch.float32 else "bf16"


def _check_disk_space(base: Path, out: Path) -> None:
    needed = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    existing = next(folder for folder in out.parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed + _RESERVE_BYTES > free:
        raise ModelError(
            f"The merged model takes {format_size(needed)}, but only {format_size(free)} are free in "
            f"{existing}: free some disk space, or choose a folder on a larger disk."
        )


def _compare(
    form: WeightFormat, base: str, adapter: str, merged: str, progress: LoadProgress
) -> LogitDifference:
    """Loads both as the engine does, one after the other, and asks both the same questions."""
    try:
        expected, dtype = _logits(form, base, adapter, progress)
        actual, _ = _logits(form, merged, "", progress)
    except MmchatError as error:
        return LogitDifference(form, "", 0.0, 0.0, 0, 0.0, str(error))
    pairs = list(zip(expected, actual, strict=True))
    difference = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    same = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in pairs])
    return LogitDifference(
        form,
        dtype,
        float(difference.max()),
        float(difference.mean()),
        difference.numel(),
        float(same.float().mean()),
    )


def _logits(
    form: WeightFormat, model: str, adapter: str, progress: LoadProgress
) -> tuple[list[Tensor], str]:
    """(the logits of each question, float32 (tokens, vocabulary) on the CPU; the compute dtype)"""
    loaded = load_model(model, quantization=form, progress=progress)
    ActiveAdapter(loaded).switch(adapter)
    logits = []
    for number, question in enumerate(_QUESTIONS):
        parts: tuple[str | ImagePart, ...] = (question,)
        if number == len(_QUESTIONS) - 1 and loaded.vision:
            parts = (_picture(), question)
        prompt = build_prompt(loaded, [Turn("user", parts)], 16)
        with torch.inference_mode():
            inputs = {key: value.to(loaded.device) for key, value in prompt.model_inputs.items()}
            out = loaded.model(input_ids=prompt.input_ids.to(loaded.device), **inputs)
        logits.append(out.logits[0].float().cpu())
    dtype = str(loaded.compute_dtype).removeprefix("torch.")
    del loaded
    gc.collect()
    return logits, dtype


def _picture() -> ImagePart:
    """A drawn test picture, always the same."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((16, 16, 64, 64), fill="red")
    draw.rectangle((72, 72, 112, 112), fill="blue")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = stream.getvalue()
    return ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)
