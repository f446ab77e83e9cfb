"""What is learned: the tokens of every answer, in packed rows or one conversation at a time."""

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mmchat.model.quantization import decoder_of
from mmchat.model.visual_prefix import scale_logits
from mmchat.prompt.pixel_values import image_token_ids, token_type_input
from mmchat.training.attention import attention_spans
from mmchat.training.packing import IGNORED, Batch, packs


def answer_loss(
    model: Any, text_model: Any, batch: Batch, features: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The weighted cross entropies of the answers' tokens, summed, and which tokens are right.

    features: (pictures, patches, vision_width) of the batch's pictures, as
    `encode_images` gives them; None where it has none. `text_model` is the model's text
    model, or a compiled form of it. Returns the sum (a scalar; over `batch.weights.sum()`
    it is the mean) and bool (answer tokens,), in the order of the batch's labels.

    Raises ValueError where the batch has not as many places as the pictures have tokens, or
    several rows for a model that `packs` not.
    """
    if len(batch.input_ids) > 1 and not packs(model.config.get_text_config()):
        raise ValueError(f"{len(batch.input_ids)} rows, and a recurrent model takes one")
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
    asked = batch.labels != IGNORED
    logits = scale_logits(model.get_output_embeddings()(hidden[asked]), config)
    # In fp32 at least: bfloat16 has too few digits for a cross entropy.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels, weights = batch.labels[asked], batch.weights[asked].to(logits.dtype)
    loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
    return loss, logits.detach().argmax(-1) == labels


def _with_pictures(model: Any, batch: Batch, embeds: Tensor, features: Tensor | None) -> Tensor:
    place = (batch.input_ids == model.config.image_token_id).unsqueeze(-1)
    places, pictures = int(place.sum()), 0 if features is None else len(features)
    if places != pictures * model.config.image_seq_length or pictures != len(batch.images):
        # masked_scatter would take the first ones, and shift all that follow.
        raise ValueError(f"{places} places for the tokens of {pictures} pictures")
    if features is None or not pictures:
        return embeds
    prefix = model.project(features).flatten(0, 1)
    return embeds.masked_scatter(place, prefix.to(embeds.dtype))


def attention_masks(batch: Batch, config: Any, dtype: torch.dtype) -> Any:
    """The batch's mask as a text model of `config` takes it: one, or one a kind of layer.

    A given mask replaces the model's own, so that a layer of sliding attention
    has to find its window in it. A model whose conversations cannot share a row
    makes its own: its row is one conversation. `dtype` is the embeddings'.
    """
    if not packs(config):
        return None
    mask = batch.attention_mask
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    near = mask
    if window is not None and getattr(config, "use_sliding_window", True):
        distance = batch.position_ids[:, None, :, None] - batch.position_ids[:, None, None, :]
        near = mask & (distance < window)
        if not kinds:
            return _as_taken(near, config, dtype)
    if "sliding_attention" in kinds:
        return {
            "full_attention": _as_taken(mask, config, dtype),
            "sliding_attention": _as_taken(near, config, dtype),
        }
    return _as_taken(mask, config, dtype)


def _as_taken(mask: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """A bool mask in the form that the model's attention reads.

    transformers passes a mask of four dimensions on as it is. sdpa reads True and False; eager
    attention, all that Gemma 2 and some others have, adds the mask to its scores, where they
    would be 1 and 0.
    """
    if config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Computes in `dtype` what tolerates it; nothing changes for float32.

    It is ours and not accelerate's, which keeps one choice for the whole process: a second run with
    another dtype would raise.
    """
    return torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16)


class PackedLoss(nn.Module):
    """`answer_loss` as a module, as accelerate wraps one: (batch, features) -> the sum.

    The forward computes in `dtype` where that is bfloat16.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype = torch.float32, *, compiled: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        decoder = decoder_of(model)
        self.decoder = (torch.compile(decoder, dynamic=False) if compiled else decoder,)
        """In a tuple, so that it is not registered a second time."""

    def forward(self, batch: Batch, features: Tensor | None) -> Tensor:
        return self.score(batch, features)[0]

    def score(self, batch: Batch, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """(the sum of weighted losses, which answer tokens are right)"""
        with autocast(batch.input_ids.device, self.dtype):
            pixels = features is not None and features.ndim == 4
            if pixels:
                features = self.model.encode_images(features)
            loss, right = answer_loss(self.model, self.decoder[0], batch, features)
            if not batch.images:
                loss = _with_every_gradient(loss, self.model)
            return loss, right


def _with_every_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """The same loss, with a gradient of 0 for projector and tower in a batch without pictures.

    Several processes wait for a gradient of every weight that trains.
    """
    if not torch.is_grad_enabled():
        return loss
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".language_model." not in name:
            loss = loss + 0 * parameter.sum()
    return loss


class HfVlmLoss(nn.Module):
    """The same for a stock image-text-to-text model, which takes its own inputs: one row at a time."""

    def __init__(self, model: Any, processor: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self._kinds = token_type_input(processor)
        self._image_tokens = image_token_ids(processor)

    def forward(self, batch: Batch, inputs: dict[str, Tensor] | None) -> Tensor:
        return self.score(batch, inputs)[0]

    def score(self, batch: Batch, inputs: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """As `PackedLoss.score`. Raises ValueError for more than one row."""
        if len(batch.input_ids) != 1:
            raise ValueError(f"{len(batch.input_ids)} rows, and a stock model takes one")
        asked = batch.labels[0] != IGNORED
        inputs = dict(inputs or {})
        if inputs and self._kinds is not None:
            places = torch.tensor(self._image_tokens, device=batch.input_ids.device)
            inputs[self._kinds] = torch.isin(batch.input_ids, places).long()
        with autocast(batch.input_ids.device, self.dtype):
            logits = self.model(
                input_ids=batch.input_ids,
                logits_to_keep=asked.nonzero().flatten(),
                use_cache=False,
                **inputs,
            ).logits[0]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels, weights = batch.labels[0][asked], batch.weights[0][asked].to(logits.dtype)
            loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
            if not inputs:
                loss = _with_every_gradient(loss, self.model)
            return loss, logits.detach().argmax(-1) == labels


class AnswerScores:
    """The share of dialogs whose every answer token is the likeliest one.

    It equals greedy decoding's exact match: as long as each token is right, the
    next is asked after the same words.
    """

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    def add(self, batch: Batch, correct: Tensor) -> None:
        branches = batch.branch[batch.labels != IGNORED].tolist()
        by_branch: dict[int, bool] = defaultdict(lambda: True)
        for branch, hit in zip(branches, correct.tolist(), strict=True):
            by_branch[branch] &= hit
        for branch, hit in by_branch.items():
            self.asked[batch.kinds[branch]] += 1
            self.right[batch.kinds[branch]] += hit

    def shares(self) -> dict[str, float]:
        return {kind: self.right[kind] / n for kind, n in sorted(self.asked.items())}
