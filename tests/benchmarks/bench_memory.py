"""What memory is predicted, and what is taken: real training steps on random weights, on the CPU.

    python -m tests.benchmarks.bench_memory [--only WORD] [--full]

Each case runs in a process of its own, forked from one that has only imported what it needs: the
base is loaded as `mmchat train` loads it, and does two of its steps (the second has the
optimizer's state beside it). What is compared is the largest resident memory (the kernel's
VmHWM) above that after the imports, with freed memory given back at once, as a run does where memory
is tight (`mmchat.model.heap`). The constants of the predictor for what no formula tells (FRAMEWORK
and SLACK in `mmchat.model.memory`) were chosen by the cases that are not `held_out`. Without `--full`
only a few small cases run. Nothing is asserted.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, SiglipVisionConfig

from mmchat.model.checkpoint import TensorInfo
from mmchat.model.configuration import VisualPrefixConfig
from mmchat.model.facts import facts_of, read_facts
from mmchat.model.memory import Prediction, predict_inference, predict_training
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from tests.benchmarks.memory_cases import SHAPES, Case, Measured, in_process


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


def predicted(case: Case, folder: Path) -> Prediction:
    """What the predictor says of a case."""
    facts = read_facts(folder)
    if case.asks:
        form: Any = case.quantization
        return predict_inference(facts, form, context=case.row_tokens, pictures=0, width=4)
    method: Any = case.method
    optimizer: Any = case.optimizer
    return predict_training(
        facts,
        method=method,
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
        width=4,
    )


def seven_billion() -> tuple[Prediction, dict[str, Any]]:
    """QLoRA of a 7B Llama with SigLIP's 576 tokens a picture on a GPU: what makes it fit 8 GB."""
    config = VisualPrefixConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=384,
            patch_size=16,
        ),
        text_config=LlamaConfig(vocab_size=32064),
        image_token_id=32000,
        projector_type="mlp",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with torch.device("meta"):
        model = VisualPrefixForConditionalGeneration(config)
    shapes = [
        TensorInfo(name, "BF16", tuple(tensor.shape)) for name, tensor in model.state_dict().items()
    ]
    facts = facts_of(config.to_dict(), shapes)
    settings: dict[str, Any] = {
        "method": "qlora",
        "rows": 1,
        "row_tokens": 1024,
        "pictures": 1,
        "rank": 16,
        "projector": True,
        "optimizer": "adamw8bit",
        "gradient_checkpointing": True,
        "width": 2,
        "device": "cuda",
    }
    return predict_training(facts, **settings), {"prefix tokens": facts.prefix, **settings}


def _apart(context: Any, job: str, given: Any, folder: Path) -> Any:
    ours, theirs = context.Pipe()
    process = context.Process(target=in_process, args=(theirs, job, given, str(folder)))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(f"{job} {given} failed") from None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--full", action="store_true", help="all of them: half an hour")
    arguments = parser.parse_args()
    chosen = CASES if arguments.full or arguments.only else CASES[:SMALL]
    chosen = [one for one in chosen if arguments.only in str(one)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmarks.memory_cases"])
    print(f"{'':2}{'case':<58}{'measured':>10}{'predicted':>11}{'error':>8}  most at")
    rows: list[tuple[Case, Prediction, Measured]] = []
    with tempfile.TemporaryDirectory() as root:
        for one in chosen:
            shapes = SHAPES[one.shape]
            folder = Path(root) / one.shape
            if not folder.exists():
                _apart(context, "write", shapes, folder)
            found = predicted(one, folder)
            measured: Measured = _apart(context, "measure", one, folder)
            rows.append((one, found, measured))
            error = found.total / measured.peak - 1
            print(
                f"{'*' if one.held_out else '':2}{one!s:<58}{measured.peak / 1e6:>7,.0f} MB"
                f"{found.total / 1e6:>8,.0f} MB{error:>8.1%}  {found.moment}",
                flush=True,
            )
        began = time.perf_counter()
        read_facts(folder)
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
    big, settings = seven_billion()
    print(f"7B + SigLIP, predicted on a GPU: {big.total / 1e9:.2f} GB at {big.moment}; {settings}")
    for part, size in sorted(big.parts.items(), key=lambda item: -item[1]):
        print(f"    {part:<22}{size / 1e9:>7.3f} GB")


if __name__ == "__main__":
    main()
