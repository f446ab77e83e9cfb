"""Estimated and measured memory: real training steps and answers on the CPU.

    python -m tests.benchmarks.bench_memory [--only WORD] [--full] [--published] [--dtype bf16|fp32]

Each case runs in a process of its own, forked from one that has only imported what it needs. The base is
loaded as `mmchat train` or the engine loads it, and does two steps of training (the second has the
optimizer's state beside it) or gives an answer of eight tokens. What is compared is the largest resident
memory (the kernel's VmHWM) above that after the imports. Pages of the weight files that were read once
are released as the system does when memory is short, and freed memory of training steps goes back to the
system at once, as in a run that has little (`mmchat.memory.machine`).

The constants of the estimate that no formula gives (FRAMEWORK, ALLOCATOR and those beside them in
`mmchat.memory.memory_estimate`) were chosen by the cases that are not `held_out`. Without `--full` only
some small cases run. `--published` measures published models with a picture; their weights are 0, so no
disk is needed, but LLaVA-1.5-7B takes 6 GB of memory and some minutes. Nothing is asserted.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mmchat.memory.memory_estimate import MemoryEstimate, estimate_inference
from mmchat.memory.model_dims import read_dims
from mmchat.memory.training_memory import TrainingStep, estimate_training
from mmchat.model.quantization import compute_dtype
from tests.benchmarks.memory_cases import Case, Dtype, Measured, in_process
from tests.memory import published


def case(shape: str, method: str, rows: int, row_tokens: int, **more: Any) -> Case:
    return Case(shape, method, rows, row_tokens, **more)


OFF = {"held_out": True}
CASES = [
    # The small ones, which run without --full too.
    case("3M", "lora", 1, 256, pictures=2, projector=True),
    case("3M", "lora", 8, 256, pictures=2, projector=True, **OFF),
    case("3M", "full", 4, 256),
    case("3M", "projector", 8, 512, pictures=4),
    case("3M", "lora", 8, 512, checkpointing=True),
    case("3M", "full", 2, 256, optimizer="muon", **OFF),
    case("3M", "lora", 4, 256, pictures=4, vision_blocks=1),
    case("3M", "qlora", 4, 512),
    case("3M", "ask", 1, 2048),
    # Larger ones.
    case("30M", "lora", 2, 512),
    case("30M", "lora", 4, 512, checkpointing=True, **OFF),
    case("30M", "lora", 2, 512, targets=("q_proj", "v_proj"), rank=64),
    case("30M", "full", 2, 256),
    case("30M", "full", 2, 256, checkpointing=True, **OFF),
    case("30M", "qlora", 2, 512, **OFF),
    case("30M", "ask4", 1, 2048, **OFF),
    case("60M-siglip", "projector", 2, 512, pictures=1, **OFF),
    case("60M-siglip", "lora", 2, 512, pictures=2, projector=True),
    case("60M-siglip", "lora", 1, 256, pictures=1, vision_blocks=2),
    case("60M-siglip", "qlora", 2, 512, pictures=2, checkpointing=True),
    case("135M", "lora", 1, 512),
    case("135M", "lora", 2, 512, checkpointing=True),
    case("135M", "qlora", 1, 512, **OFF),
    case("135M", "full", 1, 128, **OFF),
    case("135M", "ask", 1, 1024),
    case("360M-siglip", "qlora", 1, 512, pictures=1, projector=True, checkpointing=True),
    case("360M-siglip", "lora", 1, 256, pictures=1, **OFF),
    case("0.5B", "lora", 1, 256, checkpointing=True),
    case("0.5B", "qlora", 1, 256, **OFF),
    case("0.5B", "ask4", 1, 1024),
]
SMALL = 9
PUBLISHED = [
    case("HuggingFaceTB/SmolVLM-256M-Instruct", "ask4", 1, 1856, pictures=1, **OFF),
    case("HuggingFaceTB/SmolVLM-256M-Instruct", "ask", 1, 1856, pictures=1, **OFF),
    case("Qwen/Qwen2-VL-2B-Instruct", "ask4", 1, 2023, pictures=1, **OFF),
    case("llava-hf/llava-1.5-7b-hf", "ask4", 1, 1600, pictures=1, **OFF),
]


def estimated(case: Case, dtype: Dtype, folder: Path) -> MemoryEstimate:
    """What mmchat says before it loads anything."""
    dims, form = read_dims(folder), case.form(dtype)
    itemsize = 2 if (dtype if form == "4bit" else form) == "bf16" else 4
    if case.asks:
        return estimate_inference(
            dims, form, context=case.row_tokens, pictures=case.pictures, itemsize=itemsize
        )
    method: Any = case.method
    optimizer: Any = case.optimizer
    step = TrainingStep(
        method,
        rows=case.rows,
        row_tokens=case.row_tokens,
        pictures=case.rows * case.pictures,
        answer_tokens=case.answer_tokens,
        rank=case.rank,
        targets=case.targets,
        projector=case.projector,
        vision_blocks=case.vision_blocks,
        optimizer=optimizer,
        gradient_checkpointing=case.checkpointing,
    )
    return estimate_training(dims, form, step, itemsize=itemsize)


def seven_billion() -> MemoryEstimate:
    """QLoRA of LLaVA-1.5-7B on a GPU, as it fits 8 GB."""
    step = TrainingStep(
        "qlora",
        row_tokens=1024,
        pictures=1,
        projector=True,
        optimizer="adamw8bit",
        gradient_checkpointing=True,
    )
    return estimate_training(
        published.dims("llava-hf/llava-1.5-7b-hf"), "4bit", step, itemsize=2, device="cuda"
    )


def _in_own_process(context: Any, case: Case, dtype: Dtype, folder: Path) -> Any:
    ours, theirs = context.Pipe()
    process = context.Process(target=in_process, args=(theirs, case, dtype, str(folder)))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(f"{case} failed") from None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--full", action="store_true", help="all of them: half an hour")
    parser.add_argument("--published", action="store_true", help="those of published models")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="by default the processor's")
    arguments = parser.parse_args()
    usual: Dtype = "bf16" if compute_dtype(torch.device("cpu")) is torch.bfloat16 else "fp32"
    dtype: Dtype = arguments.dtype or usual
    chosen = CASES if arguments.full or arguments.only else CASES[:SMALL]
    chosen = PUBLISHED if arguments.published else chosen
    chosen = [one for one in chosen if arguments.only in str(one)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmarks.memory_cases"])
    print(f"computing in {dtype}")
    print(f"{'':2}{'case':<58}{'measured':>10}{'estimated':>11}{'error':>8}  phase")
    rows: list[tuple[Case, MemoryEstimate, Measured]] = []
    with tempfile.TemporaryDirectory() as root:
        for one in chosen:
            folder = Path(root) / one.shape.replace("/", "--")
            if not folder.exists():
                _in_own_process(context, one, dtype, folder)
            found = estimated(one, dtype, folder)
            measured: Measured = _in_own_process(context, one, dtype, folder)
            rows.append((one, found, measured))
            error = found.total / measured.peak - 1
            print(
                f"{'*' if one.held_out else '':2}{one!s:<58}{measured.peak / 1e6:>7,.0f} MB"
                f"{found.total / 1e6:>8,.0f} MB{error:>8.1%}  {found.phase} "
                f"(loading {measured.load / 1e6:,.0f})",
                flush=True,
            )
        began = time.perf_counter()
        read_dims(folder)
        took = 1000 * (time.perf_counter() - began)
    for held_out, name in ((False, "fitted to"), (True, "held out (*)")):
        errors = [
            abs(found.total / measured.peak - 1)
            for one, found, measured in rows
            if one.held_out == held_out
        ]
        if errors:
            print(
                f"{name}: {len(errors)} cases, mean error {sum(errors) / len(errors):.1%}, "
                f"largest {max(errors):.1%}"
            )
    print(f"reading {folder.name}'s headers and config.json: {took:.1f} ms")
    big = seven_billion()
    print(f"QLoRA of LLaVA-1.5-7B on a GPU, estimated: {big.total / 1e9:.2f} GB at {big.phase}")
    for part, size in sorted(big.parts.items(), key=lambda item: -item[1]):
        print(f"    {part:<22}{size / 1e9:>7.3f} GB")


if __name__ == "__main__":
    main()
