"""Our decode loop beside `generate()`, and how long a cancel waits in a prefill.

    python -m tests.benchmarks.bench_decode [--tokens 128] [--rounds 3]

The first is tokens per CPU second on a small random Llama: both run in turns on one
thread and are measured in CPU time, so that a busy machine changes little; the best
round of each counts, its prefill of 64 tokens included. The second is one chunk of a
prefill of the built-in model, its dearest, the last one that the context has room
for: 100 ms at most are wanted. Nothing here is asserted.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmchat.engine.decode import PREFILL_CHUNK, Decoding, TransformersRunner
from mmchat.engine.detokenize import StopStrings
from mmchat.engine.sampling import Sampler
from mmchat.model.loading import load_model
from mmchat.model.quantization import bitsandbytes_config, compute_dtype, import_bitsandbytes


class Prompt:
    model_inputs: dict[str, torch.Tensor] = {}  # noqa: RUF012
    images: tuple[()] = ()

    def __init__(self, length: int) -> None:
        self.input_ids = torch.randint(3, 250, (1, length))
        self.keys = [(int(token), None) for token in self.input_ids[0]]


class NoText:
    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def llama(quantized: bool) -> Any:
    """About the built-in model's decoder: 3M parameters in 4 layers of width 256."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    if quantized:
        import_bitsandbytes()
        options = bitsandbytes_config(model, compute_dtype(torch.device("cpu")))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = LlamaForCausalLM.from_pretrained(
                folder, quantization_config=options, dtype=options.bnb_4bit_compute_dtype
            ).eval()
    model.generation_config.eos_token_id = None
    return model


def ours(model: Any, prompt: Prompt, tokens: int) -> None:
    runner = TransformersRunner(model)
    state = runner.start()
    prefilled = runner.prefill(state, prompt, lambda: False)
    assert prefilled is not None
    decoding = Decoding(
        runner,
        state,
        prefilled.logits,
        sampler=Sampler(),
        detokenizer=NoText(),
        stops=StopStrings(()),
        eos_token_ids=frozenset(),
        max_tokens=tokens,
    )
    assert not "".join(decoding)


def theirs(model: Any, prompt: Prompt, tokens: int) -> None:
    mask = torch.ones_like(prompt.input_ids)
    model.generate(prompt.input_ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)


def seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def last_chunk_ms(rounds: int) -> float:
    """CPU milliseconds of the last whole chunk of the built-in model's context, the best of `rounds`."""
    loaded = load_model("scenes")
    runner = TransformersRunner(loaded.model, compute_dtype=loaded.compute_dtype)
    length = loaded.context_length // PREFILL_CHUNK * PREFILL_CHUNK
    prompt = Prompt(length)
    asked: list[float] = []

    def noted() -> bool:
        asked.append(time.process_time())
        return False

    best = float("inf")
    for _ in range(rounds):
        runner.prefill(runner.start(), prompt, noted)
        best = min(best, time.process_time() - asked[-1])
    return best * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    prompt = Prompt(64)
    torch.set_num_threads(1)
    print(torch.backends.cpu.get_cpu_capability())
    for name, quantized in [("fp32", False), ("4bit", True)]:
        model = llama(quantized)
        best = {"ours": float("inf"), "generate": float("inf")}
        for _ in range(arguments.rounds):
            for label, run in [("ours", ours), ("generate", theirs)]:
                took = seconds(lambda run=run, m=model: run(m, prompt, arguments.tokens))  # type: ignore[misc]
                best[label] = min(best[label], took)
        rates = {label: arguments.tokens / took for label, took in best.items()}
        print(
            f"{name}: ours {rates['ours']:.1f} tokens a CPU second, generate() "
            f"{rates['generate']:.1f}, ratio {rates['ours'] / rates['generate']:.2f}"
        )
    print(
        f"built-in: a chunk of {PREFILL_CHUNK} tokens {last_chunk_ms(arguments.rounds):.0f} CPU ms"
    )


if __name__ == "__main__":
    main()
