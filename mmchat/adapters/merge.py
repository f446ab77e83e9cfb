"""An adapter becomes part of its base: a complete model folder that needs mmchat no more.

LoRA goes into the weights as they are published, in float32 and back into their own type, and never
into 4-bit ones, which would round the change away. Whoever loads the result quantizes it anew; how far
that takes it from the base with the adapter on is measured and told.
"""

import gc
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmchat.adapters.active import ActiveAdapter, AdapterTensors, read_adapter
from mmchat.adapters.card import Card, check_adapter, find_adapter, read_card
from mmchat.adapters.compatibility import require_base
from mmchat.client.protocol import ImagePart, Turn
from mmchat.display.numbers import format_size
from mmchat.errors import MmchatError, ModelError
from mmchat.model.catalogue import Installed, add_folder, require_free
from mmchat.model.checkpoint import tensors
from mmchat.model.loading import LoadedModel, load_model, load_planned, told_progress
from mmchat.model.machine import Form
from mmchat.model.planning import plan_load
from mmchat.model.prompt import build_prompt
from mmchat.model.quantization import compute_dtype, works

Tell = Callable[[str, float], None]
"""Called with what is being done, and how much of it, 0 to 1."""

SHARD = "4900MB"
_SPARE = 500_000_000  # bytes that stay free on the disk
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# What a model folder holds beside its weights: configuration and tokenizer, never code.
_BESIDE = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_OWN = ("config.json", "generation_config.json")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_QUESTIONS = (
    "Hello! What can you do?",
    "Name three colours and three shapes.",
    "What is to be seen in this picture?",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the merged model's logits lie from those of its base with the adapter on."""

    form: Form
    """How both were loaded."""
    dtype: str
    """What both computed in."""
    greatest: float
    mean: float
    logits: int
    """How many were compared."""
    same_first: float
    """The share of positions at which both would say the same token, 0 to 1."""
    problem: str = ""
    """Why nothing was compared."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A model that an adapter went into."""

    model: Installed
    card: Card
    base: str
    dtype: str
    differences: tuple[Difference, ...]


def merge_adapter(
    name: str, out: Path, model_name: str = "", tell: Tell = lambda what, share: None
) -> Merged:
    """Writes the base of the adapter `name` with the adapter in it to the new folder `out`.

    It becomes a model of the person's, called `model_name` or like the folder. Raises AdapterError
    where the adapter or its base cannot be used, ModelError where the folder or the name is taken,
    there is no room, or the base cannot be loaded.
    """
    card = read_card(find_adapter(name))
    base, base_folder = require_base(card)
    check_adapter(name, base, card.base.hash)
    out = out.absolute()
    require_free(model_name or out.name, out)
    if out.exists() or out.is_symlink():
        raise ModelError(f"{out} is there already: name a new folder.")
    _check_room(base_folder, out)
    dtype = _stored_dtype(base_folder)
    plan = plan_load(base, quantization=_plain_form(dtype), device="cpu")
    loaded = load_planned(replace(plan, dtype=dtype), tell)
    _merge(loaded, read_adapter(loaded, name, torch.float32))
    _write(loaded, card, out, tell)
    del loaded
    gc.collect()
    model = add_folder(out, model_name)
    forms: list[Form] = [_plain_form(compute_dtype(_device()))]
    if works(_device()):
        forms.insert(0, "4bit")
    told = tuple(_difference(form, base, name, str(out), tell) for form in forms)
    return Merged(model, card, base, str(dtype).removeprefix("torch."), told)


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def _merge(loaded: LoadedModel, adapter: AdapterTensors) -> None:
    """The adapter's numbers in the place of the base's, for good."""
    for place, tensor in adapter.swaps:
        place.data = tensor
    for layer, delta in adapter.lora:
        try:
            weight, bias = delta.merged(layer)
        except ValueError as error:
            raise ModelError(f"{loaded.name} cannot take the adapter in: {error}.") from error
        _untie(loaded.model, layer)
        layer.weight.data = weight.to(layer.weight.dtype).contiguous()
        if bias is not None:
            layer.bias.data = bias.to(layer.bias.dtype)


def _untie(model: Any, layer: nn.Module) -> None:
    """A head that is changed cannot be the embedding any more."""
    embedding = model.get_input_embeddings()
    if layer.weight is not embedding.weight:
        return
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _write(loaded: LoadedModel, card: Card, out: Path, tell: Tell) -> None:
    """The folder under a name of its own, renamed when all of it is there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".merge-", dir=out.parent))
        try:
            with told_progress("writing", tell):
                loaded.model.save_pretrained(scratch, max_shard_size=SHARD)
            for file in sorted(loaded.folder.iterdir()):
                beside = file.suffix in _BESIDE and not file.name.endswith(".index.json")
                licence = file.name.upper().startswith(_LICENCES)
                if file.is_file() and file.name not in _OWN and (beside or licence):
                    shutil.copyfile(file, scratch / file.name)
            (scratch / "README.md").write_text(_readme(loaded, card), encoding="utf-8")
            for file in scratch.iterdir():
                file.chmod(0o600)
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"{out} cannot be written ({error.strerror or error}): make room, or name another place."
        ) from error


def _readme(loaded: LoadedModel, card: Card) -> str:
    return (
        f"# {loaded.name} with {card.name}\n\n"
        f"Made by `mmchat adapters merge`: the adapter {card.name} (trained: "
        f"{', '.join(card.trained) or 'unknown'}) is part of these weights.\n\n"
        f"- base: {card.base.id}, weights {card.base.hash}\n"
        f"- type of the weights: {str(loaded.compute_dtype).removeprefix('torch.')}\n\n"
        "The licence of the base holds for it, and that of the adapter.\n"
    )


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type of most of the base's numbers."""
    counts: Counter[str] = Counter()
    for tensor in tensors(folder):
        counts[tensor.dtype] += tensor.elements
    return _DTYPES.get(counts.most_common(1)[0][0], torch.bfloat16)


def _plain_form(dtype: torch.dtype) -> Form:
    return "fp32" if dtype == torch.float32 else "bf16"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_room(base: Path, out: Path) -> None:
    needed = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    there = next(folder for folder in out.parents if folder.exists())
    free = shutil.disk_usage(there).free
    if needed + _SPARE > free:
        raise ModelError(
            f"The merged model takes {format_size(needed)} and {format_size(free)} are free in {there}: "
            "make room, or name a folder on a larger disk."
        )


def _difference(form: Form, base: str, adapter: str, merged: str, tell: Tell) -> Difference:
    """Both loaded as the engine does it, one after the other, and asked the same."""
    try:
        wanted, dtype = _logits(form, base, adapter, tell)
        given, _ = _logits(form, merged, "", tell)
    except MmchatError as error:
        return Difference(form, "", 0.0, 0.0, 0, 0.0, str(error))
    apart = torch.cat([(a - b).abs().flatten() for a, b in zip(wanted, given, strict=True)])
    same = torch.cat(
        [(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(wanted, given, strict=True)]
    )
    return Difference(
        form,
        dtype,
        float(apart.max()),
        float(apart.mean()),
        apart.numel(),
        float(same.float().mean()),
    )


def _logits(form: Form, model: str, adapter: str, tell: Tell) -> tuple[list[Tensor], str]:
    """(the logits (tokens, vocabulary) of each question, float32 on the CPU; the compute dtype)"""
    loaded = load_model(model, quantization=form, progress=tell)
    ActiveAdapter(loaded).switch(adapter)
    found = []
    for number, question in enumerate(_QUESTIONS):
        parts: tuple[str | ImagePart, ...] = (question,)
        if number == len(_QUESTIONS) - 1 and loaded.vision:
            parts = (_picture(), question)
        prompt = build_prompt(loaded, [Turn("user", parts)], 16)
        with torch.inference_mode():
            inputs = {key: value.to(loaded.device) for key, value in prompt.model_inputs.items()}
            out = loaded.model(input_ids=prompt.input_ids.to(loaded.device), **inputs)
        found.append(out.logits[0].float().cpu())
    dtype = str(loaded.compute_dtype).removeprefix("torch.")
    del loaded
    gc.collect()
    return found, dtype


def _picture() -> ImagePart:
    """A drawn picture, always the same."""
    import hashlib

    from PIL import Image, ImageDraw

    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((16, 16, 64, 64), fill="red")
    draw.rectangle((72, 72, 112, 112), fill="blue")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = stream.getvalue()
    return ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)
