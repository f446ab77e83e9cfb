"""Processors of Hugging Face VLMs, also without torchvision.

Some processors of transformers insist on a video part that needs torchvision. mmchat shows no videos, so
without torchvision it uses a subclass that has no such part.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor, ProcessorMixin

from mmchat.errors import ModelError


def load_processor(folder: Path, model_type: str) -> Any:
    """The processor of an image-text-to-text checkpoint.

    Raises ModelError if the checkpoint has none or it cannot be loaded.
    """
    chosen: Any = AutoProcessor
    if find_spec("torchvision") is None:
        original = _processor_class(folder, model_type)
        if original is not None and "video_processor" in original.get_attributes():
            chosen = _without_video(original)
    try:
        processor = chosen.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # Every processor class reads its files in its own way: any failure is reported.
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
    """Stands between a processor of transformers and its base class, and drops the video part."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("video_processor", None)
        super().__init__(*args[:2], **kwargs)


def _without_video(original: type[ProcessorMixin]) -> type[ProcessorMixin]:
    module = sys.modules[original.__module__]
    if getattr(module, "num2words", "") is None:
        # SmolVLM's processor asks for this package to write the number of frames of a video.
        module.num2words = str  # type: ignore[attr-defined]

    whole = original.get_attributes()

    class PicturesOnly(original, _PicturesOnly):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in whole if name != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: Any, **kwargs: Any) -> Any:
            given = iter(args)
            args = [None if name == "video_processor" else next(given) for name in whole]
            return super().from_args_and_dict(args, processor_dict, **kwargs)

    PicturesOnly.__name__ = original.__name__
    return PicturesOnly
