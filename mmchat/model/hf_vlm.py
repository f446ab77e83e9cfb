"""Processors of stock checkpoints, also without torchvision.

Some stock processors insist on a video part that needs torchvision. mmchat shows no
videos, so without torchvision it uses a subclass that has no such part.
"""

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import AutoProcessor, ProcessorMixin

from mmchat.errors import ModelError

# What a processor returns about its own text, which we do not use.
_OF_TEXT = {"input_ids", "attention_mask", "text_replacement_offsets"}
_KINDS = {"mm_token_type_ids", "token_type_ids"}


def load_processor(folder: Path, model_type: str) -> Any:
    """The processor of a stock image-text-to-text checkpoint.

    Raises ModelError if the checkpoint has none or it cannot be loaded.
    """
    chosen: Any = AutoProcessor
    if find_spec("torchvision") is None:
        stock = _processor_class(folder, model_type)
        if stock is not None and "video_processor" in stock.get_attributes():
            chosen = _without_video(stock)
    try:
        processor = chosen.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # The files are foreign and each class reads them in its own way: any failure is reported.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"The picture and text processor of {folder} cannot be loaded ({reason}): "
            "fetch the model again, or choose another."
        ) from error
    if not hasattr(processor, "image_processor"):
        raise ModelError(
            f"{folder} has no image processor (preprocessor_config.json): fetch the model again."
        )
    return processor


def _processor_class(folder: Path, model_type: str) -> type[ProcessorMixin] | None:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = None
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        try:
            found = json.loads((folder / file).read_text(encoding="utf-8")).get("processor_class")
        except (OSError, ValueError, AttributeError):
            continue
        name = name or found
    name = name or PROCESSOR_MAPPING_NAMES.get(model_type)
    found_class = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(found_class, type) and issubclass(found_class, ProcessorMixin):
        return found_class
    return None


class _PicturesOnly(ProcessorMixin):
    """Sits between a stock processor and its base class, and drops the video part."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("video_processor", None)
        super().__init__(*args[:2], **kwargs)


def _without_video(stock: type[ProcessorMixin]) -> type[ProcessorMixin]:
    module = sys.modules[stock.__module__]
    if getattr(module, "num2words", "") is None:
        # SmolVLM's processor asks for this package to write the number of frames of a video.
        module.num2words = str  # type: ignore[attr-defined]

    whole = stock.get_attributes()

    class PicturesOnly(stock, _PicturesOnly):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in whole if name != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: Any, **kwargs: Any) -> Any:
            given = iter(args)
            args = [None if name == "video_processor" else next(given) for name in whole]
            return super().from_args_and_dict(args, processor_dict, **kwargs)

    PicturesOnly.__name__ = stock.__name__
    return PicturesOnly


def process_pictures(
    processor: Any, pictures: Sequence[Any]
) -> tuple[list[str], dict[str, Tensor]]:
    """Returns the text that stands for each picture, and the model's inputs, for a conversation.

    The stock processor itself decides both: it is given a text that consists only of its
    picture placeholders, and asked what it replaced them with.
    """
    out = processor(
        images=[list(pictures)],
        text=[processor.image_token * len(pictures)],
        return_tensors="pt",
        add_special_tokens=False,
        return_text_replacement_offsets=True,
    )
    texts = [entry["replacement"] for entry in out["text_replacement_offsets"][0]]
    inputs = {
        name: value
        for name, value in out.items()
        if name not in _OF_TEXT | _KINDS and isinstance(value, Tensor)
    }
    return texts, inputs


def enlarged_size(image_processor: Any, width: int, height: int) -> tuple[int, int]:
    """(width, height) to which a processor resizes a picture whose shorter side it fixes.

    Such a processor (CLIP's) bounds neither side, so a narrow picture becomes enormous
    before it is cropped. All other processors bound what they make: for those (0, 0).
    """
    size = getattr(image_processor, "size", None) or {}
    edge = size.get("shortest_edge")
    # With a longest edge the size is bounded; with pinpoints (LLaVA-NeXT) a grid bounds it.
    bounded = size.get("longest_edge") or getattr(image_processor, "image_grid_pinpoints", None)
    if not edge or bounded or not getattr(image_processor, "do_resize", True):
        return 0, 0
    scale = edge / min(width, height)
    return round(width * scale), round(height * scale)


def token_kinds(processor: Any) -> str | None:
    """The name of the input that is 1 for picture tokens and 0 for all others, if there is one."""
    return next((name for name in processor.model_input_names if name in _KINDS), None)
