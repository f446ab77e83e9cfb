"""The decode loop: one token after the other, stoppable at each.

The loop speaks to a model through `CausalRunner`; what a conversation leaves
behind (keys and values, positions) lives in a `ConversationState` and never
on the module. The runner here calls transformers' modules as `generate()`
would; faster runners stand beside it.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from mmchat.engine.cache import VisionCache
from mmchat.engine.detokenize import Detokenizer, StopStrings
from mmchat.engine.sampling import Sampler
from mmchat.engine.watching import StoppedError, Stopwatch, now, stoppable

PREFILL_CHUNK = 256
"""Tokens a forward of the prefill; a cancel waits for one at most."""

CacheKey = tuple[int, str | None]
"""A token and, where it stands for a part of a picture, the picture's sha256."""


class Span(Protocol):
    """Where a picture's tokens lie in the prompt."""

    @property
    def start(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class Prompt(Protocol):
    """A conversation as the model takes it; see `mmchat.model.prompt.PreparedPrompt`."""

    @property
    def input_ids(self) -> Tensor:
        """(1, tokens) int64."""

    @property
    def model_inputs(self) -> Mapping[str, Tensor]:
        """Pixel values and what else the first forward needs; empty without pictures."""

    @property
    def images(self) -> Sequence[Span]: ...

    @property
    def keys(self) -> Sequence[CacheKey]:
        """One a token."""


@dataclass
class ConversationState:
    """What the model remembers of the tokens that it has read.

    `keys` says which tokens these are, so that a later prompt can go on from
    the longest beginning that they share.
    """

    cache: DynamicCache
    keys: list[CacheKey] = field(default_factory=list)
    position_shift: int = 0
    """Next position minus number of tokens: pictures take fewer positions than tokens in M-RoPE."""

    @property
    def length(self) -> int:
        return len(self.keys)

    def truncate(self, length: int) -> bool:
        """Forget all but the first `length` tokens; False, and nothing done, where that cannot be.

        A sliding window that has moved on cannot come back, nor a recurrent
        state; and a shift of positions is known only behind all pictures.
        """
        surplus = self.length - length
        if surplus <= 0:
            return surplus == 0
        layers = self.cache.layers
        lost = any(
            not getattr(layer, "is_croppable", True)
            or (layer.is_sliding and self.length >= layer.sliding_window)
            for layer in layers
        )
        if lost or (self.position_shift and any(sha256 for _, sha256 in self.keys[length:])):
            return False
        self.cache.crop(-surplus)
        del self.keys[length:]
        return True

    def fork(self) -> "ConversationState":
        """An independent copy, for another answer to the same beginning."""
        return copy.deepcopy(self)


@dataclass(frozen=True)
class Prefilled:
    """The prompt is read: `logits` (vocab,) float32 of its last position."""

    logits: Tensor
    image_ms: float


class CausalRunner(Protocol):
    """A model as the decode loop sees it."""

    def start(self) -> ConversationState:
        """The state of a conversation of which nothing was read."""

    def prefill(
        self, state: ConversationState, prompt: Prompt, cancelled: Callable[[], bool]
    ) -> Prefilled | None:
        """Read `prompt` from `state.length` on; None where it was cancelled on the way.

        The tokens that `state` holds must be the beginning of the prompt, and
        at least one must be left to read. A state that was cancelled inside of a
        forward holds half of it, and is of no further use.
        """

    def step(self, state: ConversationState, token: int) -> Tensor:
        """Read one token; logits (vocab,) float32 of what comes after it."""


class TransformersRunner:
    """Any causal LM or stock image-text-to-text model, through its own forward.

    Text is read in chunks. A prompt with pictures is read by one forward of the
    whole, because every family has its own arguments for it; a cancel is heard
    before each of its blocks.
    """

    def __init__(
        self, model: Any, *, chunk: int = PREFILL_CHUNK, compute_dtype: torch.dtype | None = None
    ) -> None:
        self.model = model
        self._chunk = chunk
        self._dtype = compute_dtype or model.dtype
        parameters = inspect.signature(model.forward).parameters
        self._extra: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in parameters:
            self._extra["logits_to_keep"] = 1
        self._token_types = next(
            (name for name in ("mm_token_type_ids", "token_type_ids") if name in parameters), None
        )
        base = getattr(model, "model", None)
        # Qwen-VL's family (M-RoPE): a text position and three of time, row and column.
        self._mrope: Any = getattr(base, "get_rope_index", None)
        self._tower = next(
            (
                tower
                for name in ("vision_tower", "vision_model", "visual")
                if isinstance(tower := getattr(base, name, None), torch.nn.Module)
            ),
            None,
        )

    def start(self) -> ConversationState:
        return ConversationState(DynamicCache(config=self.model.config))

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def prefill(
        self, state: ConversationState, prompt: Prompt, cancelled: Callable[[], bool]
    ) -> Prefilled | None:
        if cancelled():
            return None
        if not prompt.images:
            return self._prefill_chunks(state, prompt, cancelled, 0.0, None)
        if state.length:
            raise ValueError("a prompt with pictures is read from its beginning")
        ids = prompt.input_ids.to(self.model.device)
        inputs = self._to_device(prompt.model_inputs)
        if self._token_types is not None:
            inputs.setdefault(self._token_types, self._mark_images(ids))
        shift = 0
        if self._mrope is None:
            inputs["position_ids"] = self._positions(0, ids.shape[1], 0)
        else:
            # Kept in the state: the module would remember only the conversation it saw last.
            axes, delta = self._mrope(ids, **inputs)
            inputs["position_ids"] = torch.cat([self._positions(0, ids.shape[1], 0)[:1], axes])
            shift = int(delta)
        inputs.update(input_ids=ids, past_key_values=state.cache, **self._extra)
        try:
            with stoppable(self.model, cancelled), Stopwatch(self._tower) as watch:
                output = self.model(**inputs)
        except StoppedError:
            return None
        state.position_shift = shift
        state.keys.extend(prompt.keys)
        return Prefilled(output.logits[0, -1].float(), watch.ms)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self, state: ConversationState, token: int) -> Tensor:
        ids = torch.tensor([[token]], device=self.model.device)
        logits = self._read(state, {"input_ids": ids}, 1)
        state.keys.append((token, None))
        return logits

    def _prefill_chunks(
        self,
        state: ConversationState,
        prompt: Prompt,
        cancelled: Callable[[], bool],
        image_ms: float,
        embeddings: Tensor | None,
    ) -> Prefilled | None:
        """Read the token ids or, where given, `embeddings` (1, tokens, hidden) in chunks."""
        name = "input_ids" if embeddings is None else "inputs_embeds"
        whole = prompt.input_ids.to(self.model.device) if embeddings is None else embeddings
        logits = None
        for start in range(state.length, whole.shape[1], self._chunk):
            if cancelled():
                return None
            chunk = whole[:, start : start + self._chunk]
            logits = self._read(state, {name: chunk}, chunk.shape[1])
            state.keys.extend(prompt.keys[start : start + self._chunk])
        if logits is None:
            raise ValueError("nothing of the prompt is left to read")
        return Prefilled(logits, image_ms)

    def _read(self, state: ConversationState, inputs: dict[str, Tensor], count: int) -> Tensor:
        output = self.model(
            **inputs,
            position_ids=self._positions(state.length, count, state.position_shift),
            past_key_values=state.cache,
            **self._extra,
        )
        logits: Tensor = output.logits[0, -1].float()
        return logits

    def _positions(self, start: int, count: int, shift: int) -> Tensor:
        """(1, tokens), or (4, 1, tokens) for M-RoPE, whose first row counts tokens."""
        device = self.model.device
        if self._mrope is None:
            return torch.arange(start, start + count, device=device)[None]
        row = torch.arange(start, start + count, device=device).expand(4, 1, count)
        return row + torch.tensor([0, shift, shift, shift], device=device)[:, None, None]

    def _to_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            name: value.to(self.model.device, self._dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if name not in ("input_ids", "attention_mask")
        }

    def _mark_images(self, ids: Tensor) -> Tensor:
        return (ids == self.model.config.image_token_id).long()


class VisualPrefixRunner(TransformersRunner):
    """The visual-prefix model: features from the cache, prefix spliced in, all of it in chunks."""

    def __init__(
        self,
        model: Any,
        *,
        vision_hash: Callable[[], str],
        vision: VisionCache,
        chunk: int = PREFILL_CHUNK,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """`vision_hash` names the weights that read a picture now: an adapter may change them."""
        super().__init__(model, chunk=chunk, compute_dtype=compute_dtype)
        self._vision_hash = vision_hash
        self._vision = vision

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def prefill(
        self, state: ConversationState, prompt: Prompt, cancelled: Callable[[], bool]
    ) -> Prefilled | None:
        began = now()
        embeddings = None
        if prompt.images:
            ids = prompt.input_ids.to(self.model.device)
            embeddings = self.model.get_input_embeddings()(ids)
            for index, span in enumerate(prompt.images):
                if span.start + span.length <= state.length:
                    continue  # its tokens were read in an earlier turn
                if cancelled():
                    return None
                prefix = self.model.project(self._features(prompt, index))[0]
                embeddings[0, span.start : span.start + span.length] = prefix.to(embeddings.dtype)
        image_ms = (now() - began) * 1000 if prompt.images else 0.0
        return self._prefill_chunks(state, prompt, cancelled, image_ms, embeddings)

    def _features(self, prompt: Prompt, index: int) -> Tensor:
        sha256 = prompt.images[index].sha256
        weights = self._vision_hash()
        features = self._vision.get(sha256, weights)
        if features is None:
            pixels = self._to_device({"pixels": prompt.model_inputs["pixel_values"]})["pixels"]
            features = self.model.encode_images(pixels[index : index + 1])
            self._vision.put(sha256, weights, features)
        return features


class Decoding:
    """One answer: iterate over it for its text, then ask how it ended.

    `tokens` are all that were drawn, the one that ended the answer included.
    """

    def __init__(
        self,
        runner: CausalRunner,
        state: ConversationState,
        logits: Tensor,
        *,
        sampler: Sampler,
        detokenizer: Detokenizer,
        stops: StopStrings,
        eos_token_ids: frozenset[int],
        max_tokens: int,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.tokens: list[int] = []
        self.finish_reason: Literal["stop", "length", "cancelled"] = "length"
        self._runner = runner
        self._state = state
        self._logits = logits
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = stops
        self._eos = eos_token_ids
        self._max_tokens = max_tokens
        self._cancelled = cancelled

    def __iter__(self) -> Iterator[str]:
        while len(self.tokens) < self._max_tokens:
            if self._cancelled():
                self.finish_reason = "cancelled"
                break
            if self.tokens:
                self._logits = self._runner.step(self._state, self.tokens[-1])
            with torch.inference_mode():
                token = self._sampler.next(self._logits)
            self.tokens.append(token)
            if token in self._eos:
                self.finish_reason = "stop"
                break
            if text := self._stops.push(self._detokenizer.push(token)):
                yield text
            if self._stops.stopped:
                self.finish_reason = "stop"
                return
        rest = self._stops.push(self._detokenizer.finish())
        if rest := rest + self._stops.finish():
            yield rest
