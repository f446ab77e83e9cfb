"""The decode loop: generates one token at a time, and can be stopped after each.

The loop uses a model through `CausalRunner`. The state of a conversation (keys and values,
positions) is in a `ConversationState`, never on the module. The runners here call the modules
of transformers as `generate()` does.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from cachetools import LRUCache
from torch import Tensor
from transformers import DynamicCache

from mmchat.engine.detokenize import Detokenizer, StopStrings
from mmchat.engine.forward_hooks import (
    ForwardCancelled,
    ForwardTimer,
    cancellable,
    synchronized_time,
)
from mmchat.engine.kv_cache import ConversationState, common_prefix, pictures_in
from mmchat.engine.sampling import Sampler
from mmchat.prompt.model_inputs import PreparedPrompt

PREFILL_CHUNK = 256
"""Tokens per forward pass of the prefill. A cancellation waits for one chunk at most."""


@dataclass(frozen=True)
class Prefilled:
    """The result of a prefill: `logits` (vocab,) float32 of the last position."""

    logits: Tensor
    image_ms: float


class CausalRunner(Protocol):
    """A model as the decode loop uses it."""

    def start(self) -> ConversationState:
        """The state of a new conversation."""

    def reusable(self, state: ConversationState, prompt: PreparedPrompt) -> int:
        """How many tokens of `prompt` need not be read again if `state` is truncated to them.

        At least one token is always left to read.
        """

    def prefill(
        self, state: ConversationState, prompt: PreparedPrompt, cancelled: Callable[[], bool]
    ) -> Prefilled | None:
        """Read `prompt` from `state.length` on; None if it was cancelled.

        `state` must be new or truncated to `reusable` tokens. After a cancellation it holds the
        tokens in its keys. If it has no keys, it cannot be used again.
        """

    def step(self, state: ConversationState, token: int) -> Tensor:
        """Read one token; logits (vocab,) float32 for the next one."""


class TransformersRunner:
    """Any causal LM or image-text-to-text model of transformers, through its own forward.

    Text is read in chunks. A prompt with pictures is read in one forward pass, because every
    family has its own arguments for them. A cancellation stops it at the next block.
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
            # A tensor, because torch would copy the whole head for the strided view that 1 gives.
            self._extra["logits_to_keep"] = torch.tensor([-1], device=model.device)
        # Mamba has another name for the cache.
        self._cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._token_types = next(
            (name for name in ("mm_token_type_ids", "token_type_ids") if name in parameters), None
        )
        base = getattr(model, "model", None)
        # Qwen-VL (M-RoPE): a text position, and three for time, row and column.
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

    def reusable(self, state: ConversationState, prompt: PreparedPrompt) -> int:
        length = common_prefix(state.keys, prompt.keys)
        # A processor prepares all pictures of a conversation together, so they are read together,
        # and the pictures that were read must be the same.
        if prompt.images and (
            _unread_pictures(prompt, length) or pictures_in(state.keys) != pictures_in(prompt.keys)
        ):
            return 0
        return length

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def prefill(
        self, state: ConversationState, prompt: PreparedPrompt, cancelled: Callable[[], bool]
    ) -> Prefilled | None:
        if cancelled():
            return None
        state.position_shift = 0
        inputs: dict[str, Any] = {}
        ids = prompt.input_ids.to(self.model.device)
        if prompt.images:
            inputs = self._to_device(prompt.model_inputs)
            if self._token_types is not None:
                is_image = ids == self.model.config.image_token_id
                inputs.setdefault(self._token_types, is_image.long())
            if self._mrope is not None:
                # Kept in the state, because the module only remembers the last conversation.
                axes, delta = self._mrope(ids, **inputs)
                state.position_shift = int(delta)
        if not _unread_pictures(prompt, state.length):
            return self._prefill_chunks(state, prompt, cancelled, 0.0, None)
        if state.length:
            raise ValueError("a prompt with unread pictures is read from its beginning")
        positions = self._positions(0, ids.shape[1], 0)
        if self._mrope is not None:
            positions = torch.cat([positions[:1], axes])
        inputs.update({"input_ids": ids, "position_ids": positions, self._cache_name: state.cache})
        try:
            with cancellable(self.model, cancelled), ForwardTimer(self._tower) as timer:
                output = self.model(**inputs, **self._extra)
        except ForwardCancelled:
            return None
        state.keys.extend(prompt.keys)
        return Prefilled(output.logits[0, -1].float(), timer.ms)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self, state: ConversationState, token: int) -> Tensor:
        ids = torch.tensor([[token]], device=self.model.device)
        logits = self._read(state, {"input_ids": ids}, 1)
        state.keys.append((token, None))
        return logits

    def _prefill_chunks(
        self,
        state: ConversationState,
        prompt: PreparedPrompt,
        cancelled: Callable[[], bool],
        image_ms: float,
        embeddings: Tensor | None,
    ) -> Prefilled | None:
        """Read the token ids or, if given, `embeddings` (1, tokens, hidden) in chunks."""
        name = "input_ids" if embeddings is None else "inputs_embeds"
        whole = prompt.input_ids.to(self.model.device) if embeddings is None else embeddings
        in_chunks = state.is_attention_only
        # Some recurrent models (Jamba, RecurrentGemma) reset with every forward pass of several tokens.
        size = self._chunk if in_chunks else whole.shape[1]
        logits = None
        for start in range(state.length, whole.shape[1], size):
            if cancelled():
                return None
            chunk = whole[:, start : start + size]
            try:
                with contextlib.nullcontext() if in_chunks else cancellable(self.model, cancelled):
                    logits = self._read(state, {name: chunk}, chunk.shape[1])
            except ForwardCancelled:
                return None
            state.keys.extend(prompt.keys[start : start + size])
        if logits is None:
            raise ValueError("nothing of the prompt is left to read")
        return Prefilled(logits, image_ms)

    def _read(self, state: ConversationState, inputs: dict[str, Tensor], count: int) -> Tensor:
        output = self.model(
            **inputs,
            position_ids=self._positions(state.length, count, state.position_shift),
            **{self._cache_name: state.cache},
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


class VisionCache:
    """Features of pictures, up to `limit` bytes; the least recently used are dropped first.

    A key is (sha256 of the picture's bytes, hash of the weights that encoded it). The features are
    those before projection, so switching adapters only encodes a picture again if an adapter
    changes the vision tower.
    """

    def __init__(self, limit: int = 256 * 1024 * 1024) -> None:
        self._features: LRUCache[tuple[str, str], Tensor] = LRUCache(
            limit, getsizeof=lambda features: features.nbytes
        )

    def get(self, sha256: str, weights_hash: str) -> Tensor | None:
        """The features (1, patches, vision_width), or None."""
        features: Tensor | None = self._features.get((sha256, weights_hash))
        return features

    def put(self, sha256: str, weights_hash: str, features: Tensor) -> None:
        """Keep `features`, unless they are larger than the whole cache."""
        with contextlib.suppress(ValueError):
            self._features[sha256, weights_hash] = features

    def clear(self) -> None:
        """Drop everything, to free memory."""
        self._features.clear()

    def __len__(self) -> int:
        return len(self._features)


class VisualPrefixRunner(TransformersRunner):
    """The visual-prefix model: cached features are spliced in, and everything is read in chunks."""

    def __init__(
        self,
        model: Any,
        *,
        vision_hash: Callable[[], str],
        vision: VisionCache,
        chunk: int = PREFILL_CHUNK,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """`vision_hash` returns the hash of the current vision weights: an adapter may change them."""
        super().__init__(model, chunk=chunk, compute_dtype=compute_dtype)
        self._vision_hash = vision_hash
        self._vision = vision

    def reusable(self, state: ConversationState, prompt: PreparedPrompt) -> int:
        return common_prefix(state.keys, prompt.keys)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def prefill(
        self, state: ConversationState, prompt: PreparedPrompt, cancelled: Callable[[], bool]
    ) -> Prefilled | None:
        start = synchronized_time()
        embeddings = None
        if _unread_pictures(prompt, state.length):
            ids = prompt.input_ids.to(self.model.device)
            embeddings = self.model.get_input_embeddings()(ids)
            for index, span in enumerate(prompt.images):
                if span.start + span.length <= state.length:
                    continue  # read in an earlier turn
                if cancelled():
                    return None
                prefix = self.model.project(self._features(prompt, index))[0]
                embeddings[0, span.start : span.start + span.length] = prefix.to(embeddings.dtype)
        image_ms = (synchronized_time() - start) * 1000 if embeddings is not None else 0.0
        return self._prefill_chunks(state, prompt, cancelled, image_ms, embeddings)

    def _features(self, prompt: PreparedPrompt, index: int) -> Tensor:
        sha256 = prompt.images[index].sha256
        weights = self._vision_hash()
        features = self._vision.get(sha256, weights)
        if features is None:
            pixels = self._to_device({"pixels": prompt.model_inputs["pixel_values"]})["pixels"]
            features = self.model.encode_images(pixels[index : index + 1])
            self._vision.put(sha256, weights, features)
        return features


def _unread_pictures(prompt: PreparedPrompt, length: int) -> bool:
    """Whether `prompt` has pictures after its first `length` tokens."""
    return any(span.start + span.length > length for span in prompt.images)


class Decoding:
    """Generates one answer: iterate over it for the text, then see `finish_reason`.

    `tokens` are all that were sampled, including the one that ended the answer.
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
