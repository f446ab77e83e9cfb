"""Switching adapters: ours beside stock peft, on the built-in model and on a 0.5B Qwen2 shape in NF4.

    python -m tests.benchmarks.bench_adapters [--rounds N] [--only built-in]

Measures, never judges. Both bases have LoRA of rank 16 on all linear layers of the text model's
blocks; the built-in model's adapters have a projector beside it. Their weights are random and lie in
a temporary folder, the 0.5B base too (1 GB on the disk). Stock peft switches LoRA only. Each line is
the median and the greatest of the rounds, wall time and CPU time of all threads in milliseconds. The
last line of each is what reading one token costs with an adapter on, the best of ten in CPU time on
one thread.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmchat.adapters.active import ActiveAdapter
from mmchat.adapters.card import LORA, LORA_WEIGHTS, PROJECTOR, Base, Card, write_card
from mmchat.client import EngineClient
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_model
from mmchat.model.quantization import text_blocks
from mmchat.settings import load_settings
from tests.model.tiny import LLAMA3, tokenizer

RANK = 16
STEPS = (
    ("first", "read and put on for the first time"),
    ("A to B", "A → B"),
    ("B to none", "B → none"),
    ("none to A", "none → A"),
)
Times = dict[str, list[tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Switching adapters")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=("built-in", "0.5B"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")  # peft asks by the old name
    with tempfile.TemporaryDirectory(prefix="mmchat-bench-") as folder:
        os.environ["MMCHAT_HOME"] = folder
        root = Path(folder)
        if arguments.only != "0.5B":
            report("built-in (scenes)", "scenes", root / "scenes", arguments.rounds)
        if arguments.only != "built-in":
            report("0.5B Qwen2 shape", str(qwen2(root / "qwen2")), root / "large", arguments.rounds)


def report(title: str, model: str, folder: Path, rounds: int) -> None:
    loaded = load_model(model)
    active = ActiveAdapter(loaded)
    adapters = [str(write_adapter(loaded, folder / name, seed)) for seed, name in enumerate("AB")]
    size = sum(file.stat().st_size for file in (folder / "A").rglob("*.safetensors"))
    print(
        f"\n{title}: {loaded.quantization}, {loaded.compute_dtype}, an adapter of {size / 1e6:.0f} MB"
    )
    tokens = {"none": step_ms(loaded.model)}
    by_us = ours(active, adapters, rounds)
    active.switch(adapters[0])
    tokens["ours"] = step_ms(loaded.model)
    active.switch("")
    by_peft, tokens["stock peft"] = stock(loaded, adapters, rounds)
    del loaded
    through = asyncio.run(engine(model, adapters, rounds))
    table({"ours": by_us, "stock peft": by_peft, "ours, through the engine": through})
    print(
        "one token, CPU ms on one thread: "
        + ", ".join(f"{who} {ms:.1f}" for who, ms in tokens.items())
    )


def table(columns: dict[str, Times]) -> None:
    head = "wall ms (max) / CPU ms"
    print(f"{'':36}" + "".join(f"{name + ', ' + head:>52}" for name in columns))
    for step, words in STEPS:
        cells = ""
        for times in columns.values():
            wall, cpu = zip(*times[step], strict=True)
            cpu_ms = f"{statistics.median(cpu):.1f}" if cpu[0] >= 0 else "-"
            cells += f"{f'{statistics.median(wall):.1f} ({max(wall):.1f}) / {cpu_ms}':>52}"
        print(f"{words:36}{cells}", flush=True)


def ours(active: ActiveAdapter, adapters: list[str], rounds: int) -> Times:
    times: Times = {step: [] for step, _ in STEPS}
    for name in adapters:
        times["first"].append(timed(lambda name=name: active.switch(name)))  # type: ignore[misc]
    for _ in range(rounds):
        active.switch(adapters[0])
        for step, name in zip(("A to B", "B to none", "none to A"), (1, None, 0), strict=True):
            target = "" if name is None else adapters[name]
            times[step].append(timed(lambda target=target: active.switch(target)))  # type: ignore[misc]
    active.switch("")
    return times


def stock(loaded: LoadedModel, adapters: list[str], rounds: int) -> tuple[Times, float]:
    from peft import PeftModel

    times: Times = {step: [] for step, _ in STEPS}
    held: list[Any] = []

    def first() -> None:
        folder = str(Path(adapters[0]) / LORA)
        held.append(PeftModel.from_pretrained(loaded.model, folder, adapter_name="A"))
        held[0].eval()

    times["first"].append(timed(first))
    model = held[0]
    second = str(Path(adapters[1]) / LORA)
    times["first"].append(timed(lambda: (model.load_adapter(second, "B"), model.set_adapter("B"))))
    for _ in range(rounds):
        model.set_adapter("A")
        times["A to B"].append(timed(lambda: model.set_adapter("B")))
        times["B to none"].append(timed(model.base_model.disable_adapter_layers))

        def on_again() -> None:
            model.base_model.enable_adapter_layers()
            model.set_adapter("A")

        times["none to A"].append(timed(on_again))
    return times, step_ms(loaded.model)


async def engine(model: str, adapters: list[str], rounds: int) -> Times:
    """The same by a running engine, as the app asks for it; its CPU time is another process's."""
    times: Times = {step: [] for step, _ in STEPS}
    client = EngineClient(load_settings({"model.name": model}))
    try:
        async with contextlib.aclosing(client.load()) as progress:
            async for _ in progress:
                pass

        async def switched(target: str) -> tuple[float, float]:
            began = time.perf_counter()
            await client.use_adapter(target)
            return (time.perf_counter() - began) * 1000, -1.0

        for name in adapters:
            times["first"].append(await switched(name))
        for _ in range(rounds):
            await client.use_adapter(adapters[0])
            times["A to B"].append(await switched(adapters[1]))
            times["B to none"].append(await switched(""))
            times["none to A"].append(await switched(adapters[0]))
    finally:
        await client.stop()
        await client.aclose()
    return times


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000


@torch.inference_mode()  # type: ignore[untyped-decorator]
def step_ms(model: Any, rounds: int = 10) -> float:
    """CPU milliseconds of reading one token on one thread, the best: a busy machine changes little."""
    ids = torch.tensor([[7]])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        took = [timed(lambda: model(input_ids=ids, use_cache=False))[1] for _ in range(rounds)]
    finally:
        torch.set_num_threads(threads)
    return min(took)


def write_adapter(loaded: LoadedModel, folder: Path, seed: int) -> Path:
    """An adapter of random weights: stock LoRA on every linear layer, and a projector if there is one."""
    from peft import LoraConfig

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.01

    blocks, _ = text_blocks(loaded.model)
    state = {}
    for path, module in loaded.model.named_modules():
        if path.startswith(blocks + ".") and isinstance(module, torch.nn.Linear):
            state[f"base_model.model.{path}.lora_A.weight"] = drawn(RANK, module.in_features)
            state[f"base_model.model.{path}.lora_B.weight"] = drawn(module.out_features, RANK)
    names = sorted({key.split(".")[-3] for key in state})
    within = rf"{blocks.replace('.', '[.]')}.*({'|'.join(names)})"
    (folder / LORA).mkdir()
    LoraConfig(r=RANK, lora_alpha=32, target_modules=within).save_pretrained(str(folder / LORA))
    save_file(state, folder / LORA / LORA_WEIGHTS)
    kind = ""
    if loaded.kind == "visual_prefix":
        kind = loaded.model.config.projector_type
        projector = loaded.model.model.multi_modal_projector.state_dict()
        save_file({key: drawn(*t.shape) for key, t in projector.items()}, folder / PROJECTOR)
    write_card(folder, Card(folder.name, Base(loaded.name, loaded.weights_hash), kind))
    return folder


def qwen2(folder: Path) -> Path:
    """A 0.5B base of random weights, in bfloat16."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    tok = tokenizer(
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
    )
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=tok.eos_token_id,
        bos_token_id=tok.bos_token_id,
    )
    torch.manual_seed(0)
    disable_progress_bar()
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
