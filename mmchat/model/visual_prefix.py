"""The visual-prefix model: pictures become embeddings that are inserted into the prompt.

These are LLaVA's classes with the vision encoder behind an adapter (`encoders`) and our projector
(`projectors`) instead of theirs, so they work with everything in transformers, peft and bitsandbytes that
supports LLaVA.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from mmchat.model.configuration import GridVisionConfig, VisualPrefixConfig
from mmchat.model.encoders import encoder_for
from mmchat.model.processor import VisualPrefixProcessor
from mmchat.model.projectors import GridPositions, QueryProjector, build_projector
from mmchat.model.tower import GridVisionModel


class VisualPrefixPreTrainedModel(LlavaPreTrainedModel):
    """Initializes the modules that transformers does not know."""

    config: VisualPrefixConfig
    config_class = VisualPrefixConfig

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GridPositions):
            module.initialize()
        elif isinstance(module, QueryProjector):
            nn.init.normal_(module.queries, std=0.02)
        elif isinstance(module, GridVisionModel):
            module._init_weights(module)


class VisualPrefixModel(VisualPrefixPreTrainedModel, LlavaModel):
    """Vision tower, projector and text model, without the language-modelling head."""

    def __init__(self, config: VisualPrefixConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.encoder = encoder_for(config.vision_config, config.image_size)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(images, 3, side, side) -> features (images, patches, vision_width), before projection.

        They depend on the picture and the tower only: an adapter changes them if it has tensors of the
        tower, and never by its projector.
        """
        layer = cast(int, self.config.vision_feature_layer)
        return self.encoder.features(self.vision_tower, pixel_values, layer)

    def project(self, features: Tensor) -> Tensor:
        """(images, patches, vision_width) -> visual prefix tokens (images, prefix_tokens, text_width)."""
        prefix: Tensor = self.multi_modal_projector(features)
        return prefix

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """The two above under transformers' name: `pooler_output` has (prefix_tokens, text_width) for each picture."""
        features = self.encode_images(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=features, pooler_output=list(self.project(features))
        )


class VisualPrefixForConditionalGeneration(
    VisualPrefixPreTrainedModel, LlavaForConditionalGeneration
):
    """The whole model. `generate()` works; tests compare the engine's decode loop with it."""

    def __init__(self, config: VisualPrefixConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = VisualPrefixModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=_head_has_bias(text))
        self.post_init()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """See `VisualPrefixModel.encode_images`."""
        return self.model.encode_images(pixel_values)

    def project(self, features: Tensor) -> Tensor:
        """See `VisualPrefixModel.project`."""
        return self.model.project(features)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """input_ids (batch, tokens) or inputs_embeds (batch, tokens, hidden) -> logits (batch, tokens, vocabulary).

        pixel_values: (images, 3, side, side), the pictures in the order of their
        placeholder tokens. labels: (batch, tokens), -100 for tokens without a loss.
        """
        kwargs.pop("return_dict", None)
        outputs = self.model(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = scale_logits(self.lm_head(hidden[:, kept, :]), self.config.text_config)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size
            )
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


def scale_logits(logits: Tensor, text_config: Any) -> Tensor:
    """What some decoder families do to their logits in their causal-LM class, and LLaVA does not.

    Gemma 2 and 3 cap them softly, Granite divides them, Cohere multiplies them. A test compares each
    family's text-only logits with those of `AutoModelForCausalLM`.
    """
    if (cap := getattr(text_config, "final_logit_softcapping", None)) is not None:
        return torch.tanh(logits / cap) * cap
    if (divisor := getattr(text_config, "logits_scaling", None)) is not None:
        return logits / divisor
    if (factor := getattr(text_config, "logit_scale", None)) is not None:
        return logits * factor
    return logits


def _head_has_bias(text_config: Any) -> bool:
    """Whether the decoder's own head has a bias (as in Phi); builds the class on the meta device."""
    with torch.device("meta"):
        head = AutoModelForCausalLM.from_config(text_config).get_output_embeddings()
    return getattr(head, "bias", None) is not None


AutoConfig.register(GridVisionConfig.model_type, GridVisionConfig, exist_ok=True)
AutoConfig.register(VisualPrefixConfig.model_type, VisualPrefixConfig, exist_ok=True)
AutoModel.register(GridVisionConfig, GridVisionModel, exist_ok=True)
AutoModel.register(VisualPrefixConfig, VisualPrefixModel, exist_ok=True)
AutoModelForImageTextToText.register(
    VisualPrefixConfig, VisualPrefixForConditionalGeneration, exist_ok=True
)
AutoProcessor.register(VisualPrefixConfig, VisualPrefixProcessor, exist_ok=True)
