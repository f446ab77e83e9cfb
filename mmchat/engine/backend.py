"""The model behind the engine's service: load, answer, tell what is held.

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
from mmchat.client.protocol import BackendStatus, Delta, Done, Options, Started, Turn
from mmchat.engine.cache import VisionCache
from mmchat.engine.decode import Decoding, TransformersRunner, VisualPrefixRunner
from mmchat.engine.detokenize import StopStrings, detokenizer_for
from mmchat.engine.sampling import Sampler
from mmchat.errors import EngineError, MmchatError
from mmchat.model.loading import LoadedModel, load_planned
from mmchat.model.planning import is_out_of_memory, plan_load
from mmchat.model.prompt import Cancelled, PreparedPrompt, build_prompt
from mmchat.settings import Device, Quantization

Progress = Callable[[str, float], None]

_NOTHING_LOADED = "No model is loaded: the next message loads one, or say which with --model."


class Backend(Protocol):
    """What the service drives."""

    def load(
        self, model: str, adapter: str, quantization: str, device: str, progress: Progress
    ) -> None:
        """Replace what is loaded; `progress` is told the stage and 0..1.

        Raises:
            ModelError, AdapterError, EngineError: nothing half loaded is kept; what
                was loaded before is, where the fault showed before it had to go. The
                same holds for whatever `progress` raises to give the load up.
        """

    def is_current(self) -> bool:
        """Whether the files of the model that is loaded are still those that were read."""

    def adapter_is_current(self) -> bool:
        """Whether those of the adapter that is on are; true where none is."""

    def use_adapter(self, adapter: str) -> None:
        """Switch to another adapter of the loaded base; "" is the base's own projector.

        The same one again reads its files anew where they have changed.

        Raises:
            AdapterError: `status` then says which adapter is on.
        """

    def generate(
        self, turns: Sequence[Turn], options: Options, cancelled: Callable[[], bool]
    ) -> Iterator[Started | Delta | Done]:
        """Answer the last turn; `cancelled` is asked at every picture, prefill chunk and token.

        Where that is true before the prompt is made, Done comes alone.
        """

    def status(self) -> BackendStatus:
        """What is held now."""


def create_backend() -> Backend:
    """The real one. Its threads are the physical cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_physical_cores())
    return TorchBackend()


class TorchBackend:
    """One model of any kind that `mmchat.model.loading` loads."""

    def __init__(self) -> None:
        self._loaded: LoadedModel | None = None
        self._adapter: ActiveAdapter | None = None
        self._runner: TransformersRunner | None = None
        self._vision = VisionCache()

    def load(
        self, model: str, adapter: str, quantization: str, device: str, progress: Progress
    ) -> None:
        progress("reading", 0.0)
        if self._loaded is None:
            _release()  # a load that was given up half-way leaves its tensors to the collector
        # Whatever can be found wrong beforehand does not cost the model that is loaded.
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
        _release()  # outside of the except: its traceback held what was loaded so far
        raise EngineError(
            f"The memory ran out while {model} was loaded: close other programs, load it with "
            "--quantization 4bit, or choose a smaller model."
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
        self, turns: Sequence[Turn], options: Options, cancelled: Callable[[], bool]
    ) -> Iterator[Started | Delta | Done]:
        if self._loaded is None or self._adapter is None or self._runner is None:
            raise EngineError(_NOTHING_LOADED)
        held = (self._loaded, self._adapter, self._runner)
        try:
            yield from self._answer(*held, turns, options, cancelled)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self._vision.clear()
        _release()  # outside of the except: its traceback held the answer's tensors
        raise EngineError(
            "The memory was not enough for this answer: begin a new conversation, attach fewer "
            "pictures, or load a smaller model."
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
            compute_dtype=_name(loaded.compute_dtype),
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
        turns: Sequence[Turn],
        options: Options,
        cancelled: Callable[[], bool],
    ) -> Iterator[Started | Delta | Done]:
        if options.max_tokens < 1:
            raise EngineError(f"max_tokens is {options.max_tokens}, but must be 1 or more.")
        began = time.perf_counter()
        try:
            prompt = build_prompt(loaded, turns, options.max_tokens, cancelled)
        except Cancelled:
            yield Done("cancelled", model=loaded.name, adapter=active.name)
            return
        prompt_tokens = prompt.input_ids.shape[1]
        sampler = _sampler(options, prompt)
        started = Started(
            prompt_tokens=prompt_tokens,
            image_tokens=prompt.image_tokens,
            cached_tokens=0,
            dropped_turns=prompt.dropped_turns,
            context_length=loaded.context_length,
            adapter=active.name,
            adapter_hash=active.digest,
        )
        yield started
        prepared = time.perf_counter()
        state = runner.start()
        prefilled = runner.prefill(state, prompt, cancelled)
        read = time.perf_counter()
        image_ms = prefilled.image_ms if prefilled is not None else 0.0
        prefill_ms = (read - prepared) * 1000 - image_ms
        if prompt.images:
            image_ms += (prepared - began) * 1000
        decoding = None
        if prefilled is not None:
            decoding = Decoding(
                runner,
                state,
                prefilled.logits,
                sampler=sampler,
                detokenizer=detokenizer_for(loaded.tokenizer),
                stops=StopStrings(options.stop),
                eos_token_ids=loaded.eos_token_ids,
                max_tokens=max(1, min(options.max_tokens, loaded.context_length - prompt_tokens)),
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
            # The first token costs no step: the prefill gave its logits.
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
        _release()


def _sampler(options: Options, prompt: PreparedPrompt) -> Sampler:
    return Sampler(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        prompt=(token for token, _ in prompt.keys),
    )


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _physical_cores() -> int:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, cores)
