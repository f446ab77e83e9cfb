"""The model behind the engine's service: loads it, generates answers, reports its status.

Everything here is synchronous and called from one thread, the service's worker.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import psutil
import torch

from mmchat.adapters.active import ActiveAdapter
from mmchat.adapters.card import check_adapter
from mmchat.client.protocol import BackendStatus, Delta, Done, Options, Started
from mmchat.engine.decode import Decoding, TransformersRunner, VisionCache, VisualPrefixRunner
from mmchat.engine.detokenize import StopStrings, detokenizer_for
from mmchat.engine.prefix_cache import PrefixCache
from mmchat.engine.sampling import Sampler
from mmchat.errors import EngineError, MmchatError
from mmchat.model.catalogue import resolve_model
from mmchat.model.load_plan import is_out_of_memory, plan_load
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_planned
from mmchat.prompt.model_inputs import build_prompt
from mmchat.prompt.pixel_values import Cancelled
from mmchat.settings import Device, Quantization
from mmchat.turns import ImagePart, Turn

Progress = Callable[[str, float], None]
"""Called with the stage of a load and a fraction, 0 to 1."""

_NOTHING_LOADED = "No model is loaded: the next message loads one, or choose one with --model."


class Backend(Protocol):
    """What the service needs from a backend."""

    def load(
        self, model: str, adapter: str, quantization: str, device: str, progress: Progress
    ) -> None:
        """Replace the loaded model.

        Raises:
            ModelError, AdapterError, EngineError: nothing is left half loaded. The previous model
                stays loaded if the error was found before it was unloaded. Exceptions that
                `progress` raises to cancel the load have the same effect.
        """

    def is_current(self) -> bool:
        """Whether the files of the loaded model are unchanged since they were read."""

    def adapter_is_current(self) -> bool:
        """Whether the files of the active adapter are unchanged; true if there is none."""

    def use_adapter(self, adapter: str) -> None:
        """Switch to another adapter of the loaded base; "" means no adapter.

        The files of the active adapter are read again if they have changed.

        Raises:
            AdapterError: `status` then says which adapter is active.
        """

    def generate(
        self, turns: Sequence[Turn[ImagePart]], options: Options, cancelled: Callable[[], bool]
    ) -> Iterator[Started | Delta | Done]:
        """Answer the last turn; `cancelled` is checked at every picture, prefill chunk and token.

        If it is true before the prompt is built, Done is the only event.
        """

    def status(self) -> BackendStatus:
        """What is loaded now."""


def create_backend() -> Backend:
    """Creates the real backend, with one thread per physical core unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_physical_cores())
    return TorchBackend()


class TorchBackend:
    """One model, of any kind that `mmchat.model.loading` can load."""

    def __init__(self) -> None:
        self._loaded: LoadedModel | None = None
        self._adapter: ActiveAdapter | None = None
        self._runner: TransformersRunner | None = None
        self._vision = VisionCache()
        self._prefix = PrefixCache()

    def load(
        self, model: str, adapter: str, quantization: str, device: str, progress: Progress
    ) -> None:
        progress("reading", 0.0)
        resolve_model(model)  # reject a wrong name first
        # Free what can be freed before the plan measures the free memory: the last conversation,
        # and the tensors of a cancelled load.
        self._prefix.clear()
        _release()
        # An error here leaves the loaded model as it is.
        plan = plan_load(
            model,
            quantization=cast(Quantization, quantization),
            device=cast(Device, device),
            replaced=self._loaded,
        )
        if adapter:
            kind = getattr(plan.config, "projector_type", "")
            check_adapter(adapter, model, plan.weights_hash, kind)
        self._unload()
        try:
            loaded = load_planned(plan, progress)
            active = ActiveAdapter(loaded)
            active.switch(adapter)
        except (MmchatError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error.__cause__ or error):
                raise
        else:
            self._loaded, self._adapter = loaded, active
            self._runner = self._runner_for(loaded, active)
            return
        _release()  # after the except block, whose traceback kept the tensors alive
        raise EngineError(
            f"Out of memory while loading {model}: close other programs, use --quantization 4bit, or "
            "choose a smaller model."
        )

    def is_current(self) -> bool:
        return self._loaded is None or self._loaded.is_current()

    def adapter_is_current(self) -> bool:
        return self._adapter is None or self._adapter.is_current()

    def use_adapter(self, adapter: str) -> None:
        if self._adapter is None:
            raise EngineError(_NOTHING_LOADED)
        self._adapter.switch(adapter)

    def generate(
        self, turns: Sequence[Turn[ImagePart]], options: Options, cancelled: Callable[[], bool]
    ) -> Iterator[Started | Delta | Done]:
        if self._loaded is None or self._adapter is None or self._runner is None:
            raise EngineError(_NOTHING_LOADED)
        loaded = (self._loaded, self._adapter, self._runner)
        try:
            yield from self._answer(*loaded, turns, options, cancelled)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self._vision.clear()
        self._prefix.clear()
        _release()  # after the except block, whose traceback kept the tensors alive
        raise EngineError(
            "Out of memory while answering: begin a new conversation, attach fewer pictures, or load "
            "a smaller model."
        )

    def status(self) -> BackendStatus:
        loaded, active = self._loaded, self._adapter
        if loaded is None or active is None:
            return BackendStatus()
        return BackendStatus(
            model=loaded.name,
            adapter=active.name,
            device=str(loaded.device),
            quantization=loaded.quantization,
            compute_dtype=str(loaded.compute_dtype).removeprefix("torch."),
            context_length=loaded.context_length,
            vision=loaded.vision,
            memory_bytes=loaded.memory_bytes,
            weights_hash=loaded.weights_hash,
            adapter_hash=active.digest,
        )

    def _answer(
        self,
        loaded: LoadedModel,
        active: ActiveAdapter,
        runner: TransformersRunner,
        turns: Sequence[Turn[ImagePart]],
        options: Options,
        cancelled: Callable[[], bool],
    ) -> Iterator[Started | Delta | Done]:
        began = time.perf_counter()
        try:
            prompt = build_prompt(loaded, turns, options.max_tokens, cancelled)
        except Cancelled:
            yield Done("cancelled", model=loaded.name, adapter=active.name)
            return
        weights = (loaded.weights_hash, active.digest)
        if options.seed is not None:
            # The same seed must give the same answer, but a prompt that is read in other chunks
            # gives slightly different logits.
            self._prefix.clear()
        state = self._prefix.resume(runner, prompt, weights)
        started = Started(
            prompt_tokens=prompt.input_ids.shape[1],
            image_tokens=prompt.image_tokens,
            cached_tokens=state.length,
            dropped_turns=prompt.dropped_turns,
            context_length=loaded.context_length,
            adapter=active.name,
            adapter_hash=active.digest,
        )
        with self._prefix.keeping(state, weights):
            yield started
            prepared = time.perf_counter()
            prefilled = runner.prefill(state, prompt, cancelled)
            read = time.perf_counter()
            image_ms = prefilled.image_ms if prefilled is not None else 0.0
            prefill_ms = (read - prepared) * 1000 - image_ms
            if prompt.images:
                image_ms += (prepared - began) * 1000
            decoding = None
            if prefilled is not None:
                room = loaded.context_length - started.prompt_tokens
                decoding = Decoding(
                    runner,
                    state,
                    prefilled.logits,
                    sampler=Sampler(options, (token for token, _ in prompt.keys)),
                    detokenizer=detokenizer_for(loaded.tokenizer),
                    stops=StopStrings(options.stop),
                    eos_token_ids=loaded.eos_token_ids,
                    max_tokens=max(1, min(options.max_tokens, room)),
                    cancelled=cancelled,
                )
                for text in decoding:
                    yield Delta(text)
        seconds = time.perf_counter() - read
        tokens = len(decoding.tokens) if decoding is not None else 0
        yield Done(
            finish_reason=decoding.finish_reason if decoding is not None else "cancelled",
            completion_tokens=tokens,
            image_ms=image_ms,
            prefill_ms=prefill_ms,
            decode_ms=seconds * 1000,
            # The first token needs no step: the prefill computed its logits.
            tokens_per_second=(tokens - 1) / seconds if tokens > 1 else 0.0,
            model=loaded.name,
            adapter=active.name,
            adapter_hash=active.digest,
            quantization=loaded.quantization,
            device=str(loaded.device),
            prompt_tokens=started.prompt_tokens,
            image_tokens=started.image_tokens,
            cached_tokens=started.cached_tokens,
            dropped_turns=started.dropped_turns,
            context_length=started.context_length,
        )

    def _runner_for(self, loaded: LoadedModel, active: ActiveAdapter) -> TransformersRunner:
        if loaded.kind == "visual_prefix":
            return VisualPrefixRunner(
                loaded.model,
                vision_hash=lambda: active.vision_hash,
                vision=self._vision,
                compute_dtype=loaded.compute_dtype,
            )
        return TransformersRunner(loaded.model, compute_dtype=loaded.compute_dtype)

    def _unload(self) -> None:
        self._loaded = self._adapter = None
        self._runner = None
        self._vision.clear()
        self._prefix.clear()
        _release()


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _physical_cores() -> int:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, cores)
