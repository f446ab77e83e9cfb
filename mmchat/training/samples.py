"""Answers of a model that is being trained, and what a stock model takes for pictures."""

from collections.abc import Sequence
from typing import Any

import torch

from mmchat.data.types import Example, Picture
from mmchat.model.loading import LoadedModel
from mmchat.model.pictures import picture_inputs
from mmchat.model.prompt import build_prompt
from mmchat.training.progress import SampleAnswer

NEW_TOKENS = 48


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def answer(loaded: LoadedModel, example: Example) -> SampleAnswer:
    """What the model says now, greedily, to the last question of `example`."""
    last = max(n for n, turn in enumerate(example.turns) if turn.role == "assistant")
    asked = example.turns[:last]
    prompt = build_prompt(loaded, asked, NEW_TOKENS)
    ids = loaded.model.generate(
        input_ids=prompt.input_ids,
        attention_mask=torch.ones_like(prompt.input_ids),
        **prompt.model_inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=sorted(loaded.eos_token_ids),
        pad_token_id=loaded.tokenizer.pad_token_id or 0,
    )
    said = loaded.tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    return SampleAnswer(asked[-1].text if asked else "", example.turns[last].text, said.strip())


class StockInputs:
    """A stock model's inputs for the pictures of one conversation."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def __call__(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """`pixel_values` and what the architecture wants beside it."""
        _, inputs = picture_inputs(self._loaded, pictures, {}, lambda: False)
        dtype = self._loaded.compute_dtype
        return {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}
