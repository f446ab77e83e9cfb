"""The processor of the visual-prefix model: from pictures and text to its inputs."""

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin


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
