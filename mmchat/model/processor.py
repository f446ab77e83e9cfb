"""Processors, which turn pictures and text into a model's inputs: our own, and those of Hugging Face VLMs.

Some processors of transformers insist on a video part that needs torchvision. mmchat shows no videos, so
without torchvision it uses a subclass that has no such part.
"""

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from mmchat.errors import ModelError, describe_error


class VisualPrefixProcessor(ProcessorMixin):
    """An image processor, a tokenizer and the number of prefix tokens of a picture.

    Chats are encoded by `mmchat.prompt`, which keeps people's text from forming special tokens. Calling
    this processor is for transformers' own tools.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012 (transformers reads it)
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        prefix_tokens: int = 64,
        image_token: str = "<image>",
        **kwargs: Any,
    ) -> None:
        self.prefix_tokens = prefix_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def image_tokens(self, width: int, height: int) -> int:
        """The number of prefix tokens of a picture; it does not depend on its size in pixels."""
        return self.prefix_tokens

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """`<image>` in `text` stands for a picture -> input_ids (batch, tokens), pixel_values (images, 3, side, side)."""
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, return_tensors="pt"))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            whole = self.image_token * self.prefix_tokens
            kwargs.setdefault("return_tensors", "pt")
            data.update(
                self.tokenizer([part.replace(self.image_token, whole) for part in texts], **kwargs)
            )
        return BatchFeature(data)


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
        raise ModelError(
            f"The picture and text processor of {folder} cannot be loaded ({describe_error(error)}): "
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
