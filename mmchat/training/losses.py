"""The training loss: the cross entropy of the answers' tokens, in packed rows or one by one."""

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mmchat.model.quantization import decoder_of
from mmchat.model.visual_prefix import scale_logits
from mmchat.prompt.pixel_values import image_token_ids, token_type_input
from mmchat.training.packing import IGNORED, Batch, attention_spans, can_pack


def answer_loss(
    model: Any, text_model: Any, batch: Batch, features: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The sum of the weighted cross entropies of the answers' tokens, and which tokens are correct.

    features: (pictures, patches, vision_width) from `encode_images`; None if the batch has no
    pictures. text_model: the model's text model, or a compiled version. Returns a scalar (divided by
    `batch.weights.sum()` it is the mean) and bool (labels,), in the order of the batch's labels.

    Raises ValueError if the image tokens in the batch do not match the pictures, or if it has several
    rows and the model cannot pack.
    """
    if len(batch.input_ids) > 1 and not can_pack(model.config.get_text_config()):
        raise ValueError(f"a recurrent model takes one row, not {len(batch.input_ids)}")
    embeds = model.get_input_embeddings()(batch.input_ids)
    if getattr(model.config, "image_token_id", None) is not None:
        embeds = _with_pictures(model, batch, embeds, features)
    config = model.config.get_text_config()
    hidden = text_model(
        inputs_embeds=embeds,
        attention_mask=attention_masks(batch, config, embeds.dtype),
        position_ids=batch.position_ids,
        use_cache=False,
        **attention_spans(batch, text_model),
    ).last_hidden_state
    hidden = hidden[batch.labels != IGNORED]
    return _score_logits(scale_logits(model.get_output_embeddings()(hidden), config), batch)


def _score_logits(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(the sum of the weighted cross entropies, which labels are the most likely token)

    logits: (labels, vocabulary), in the order of the batch's labels.
    """
    # At least float32, because bfloat16 is too imprecise for a cross entropy.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labelled = batch.labels != IGNORED
    labels, weights = batch.labels[labelled], batch.weights[labelled].to(logits.dtype)
    loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
    return loss, logits.detach().argmax(-1) == labels


def _with_pictures(model: Any, batch: Batch, embeds: Tensor, features: Tensor | None) -> Tensor:
    mask = (batch.input_ids == model.config.image_token_id).unsqueeze(-1)
    tokens, pictures = int(mask.sum()), 0 if features is None else len(features)
    if tokens != pictures * model.config.image_seq_length or pictures != len(batch.images):
        # masked_scatter would silently use the wrong features.
        raise ValueError(f"{tokens} image tokens do not match {pictures} pictures")
    if features is None or not pictures:
        return embeds
    prefix = model.project(features).flatten(0, 1)
    return embeds.masked_scatter(mask, prefix.to(embeds.dtype))


def attention_masks(batch: Batch, config: Any, dtype: torch.dtype) -> Any:
    """The batch's mask in the form that a text model of `config` takes: one mask, or one per layer type.

    It replaces the model's own mask, so it must include the window of sliding attention. A model that
    cannot pack makes its own mask, because its row is one conversation. dtype: that of the embeddings.
    """
    if not can_pack(config):
        return None
    mask = batch.attention_mask
    layer_types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    near = mask
    if window is not None and getattr(config, "use_sliding_window", True):
        distance = batch.position_ids[:, None, :, None] - batch.position_ids[:, None, None, :]
        near = mask & (distance < window)
        if not layer_types:
            return _to_model_mask(near, config, dtype)
    if "sliding_attention" in layer_types:
        return {
            "full_attention": _to_model_mask(mask, config, dtype),
            "sliding_attention": _to_model_mask(near, config, dtype),
        }
    return _to_model_mask(mask, config, dtype)


def _to_model_mask(mask: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """Converts a bool mask to what the model's attention expects.

    transformers passes a mask with four dimensions through unchanged. sdpa accepts bool; eager
    attention, which Gemma 2 and some others always use, adds the mask to its scores.
    """
    if config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """torch.autocast to `dtype` if it is bfloat16; no change for float32.

    accelerate's is not used, because it keeps one choice for the whole process: a second run with another
    dtype would raise.
    """
    return torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16)


class PackedLoss(nn.Module):
    """`answer_loss` as a module, which accelerate can wrap: (batch, features) -> the sum.

    The forward pass autocasts to `dtype` if it is bfloat16.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype = torch.float32, *, compiled: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        decoder = decoder_of(model)
        self.decoder = (torch.compile(decoder, dynamic=False) if compiled else decoder,)
        """In a tuple, so that it is not registered as a submodule twice."""

    def forward(self, batch: Batch, features: Tensor | None) -> Tensor:
        return self.score(batch, features)[0]

    def score(self, batch: Batch, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """(the sum of the weighted losses, which labels are predicted correctly)"""
        with autocast(batch.input_ids.device, self.dtype):
            if features is not None and features.ndim == 4:  # pixels
                features = self.model.encode_images(features)
            loss, correct = answer_loss(self.model, self.decoder[0], batch, features)
            if not batch.images:
                loss = _with_zero_gradients(loss, self.model)
            return loss, correct


def _with_zero_gradients(loss: Tensor, model: nn.Module) -> Tensor:
    """Adds a gradient of 0 for projector and tower, for a batch without pictures.

    With several processes, every trained weight needs a gradient.
    """
    if not torch.is_grad_enabled():
        return loss
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".language_model." not in name:
            loss = loss + 0 * parameter.sum()
    return loss


class HfVlmLoss(nn.Module):
    """The loss of a Hugging Face VLM, which takes its own inputs, one row at a time."""

    def __init__(self, model: Any, processor: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self._token_types_key = token_type_input(processor)
        self._image_tokens = image_token_ids(processor)

    def forward(self, batch: Batch, inputs: dict[str, Tensor] | None) -> Tensor:
        return self.score(batch, inputs)[0]

    def score(self, batch: Batch, inputs: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """As `PackedLoss.score`. Raises ValueError for more than one row."""
        if len(batch.input_ids) != 1:
            raise ValueError(f"a Hugging Face VLM takes one row, not {len(batch.input_ids)}")
        inputs = dict(inputs or {})
        if inputs and self._token_types_key is not None:
            places = torch.tensor(self._image_tokens, device=batch.input_ids.device)
            inputs[self._token_types_key] = torch.isin(batch.input_ids, places).long()
        with autocast(batch.input_ids.device, self.dtype):
            logits = self.model(
                input_ids=batch.input_ids,
                logits_to_keep=(batch.labels[0] != IGNORED).nonzero().flatten(),
                use_cache=False,
                **inputs,
            ).logits[0]
            loss, correct = _score_logits(logits, batch)
            if not inputs:
                loss = _with_zero_gradients(loss, self.model)
            return loss, correct


class AnswerAccuracy:
    """The share of conversations in which every label is the most likely token.

    It equals the exact match of greedy decoding: as long as every token is correct, the next one has the
    same context.
    """

    def __init__(self) -> None:
        self.correct: Counter[str] = Counter()
        self.total: Counter[str] = Counter()

    def add(self, batch: Batch, correct: Tensor) -> None:
        """correct: bool (labels,), as `PackedLoss.score` returns it."""
        branches = batch.branch[batch.labels != IGNORED].tolist()
        by_branch: dict[int, bool] = defaultdict(lambda: True)
        for branch, hit in zip(branches, correct.tolist(), strict=True):
            by_branch[branch] &= hit
        for branch, hit in by_branch.items():
            self.total[batch.kinds[branch]] += 1
            self.correct[batch.kinds[branch]] += hit

    @property
    def overall(self) -> float:
        return sum(self.correct.values()) / max(sum(self.total.values()), 1)

    def by_type(self) -> dict[str, float]:
        return {kind: self.correct[kind] / n for kind, n in sorted(self.total.items())}
