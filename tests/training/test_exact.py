"""A step is the same however it is cut: packed or not, in one piece or in many."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mmchat.errors import RecipeError
from mmchat.model.loading import load_model
from mmchat.training.dataloader import RowPacker, StepDataset
from mmchat.training.encode import ExampleEncoder
from mmchat.training.feature_cache import pixel_values
from mmchat.training.finetune_config import FinetuneConfig, StageConfig
from mmchat.training.losses import PackedLoss
from mmchat.training.train_step import StepInput, TrainStep
from mmchat.training.trainable import Trainable
from tests.training.tuned import examples, write_base

STAGE = StageConfig(
    method="lora",
    batch=10,
    row_tokens=96,
    learning_rate=1e-2,
    projector_learning_rate=1e-2,
    steps=3,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


class Bench:
    """A base with LoRA, and one step of its data."""

    def __init__(self, base: Path, dtype: torch.dtype, *, pack: bool = True) -> None:
        self.loaded = load_model(str(base), quantization="fp32", device="cpu")
        recipe = FinetuneConfig(name="t", model=str(base), stages=(STAGE,))
        torch.manual_seed(5)
        self.trainable = Trainable(self.loaded, recipe)
        self.groups = self.trainable.start_stage(STAGE)
        with torch.no_grad():
            for name, parameter in self.loaded.model.named_parameters():
                if ".lora_B." in name:  # zeros would hide every mistake in what comes after
                    parameter.normal_(0, 0.1)
        self.loaded.model.to(dtype)
        encoder = ExampleEncoder(self.loaded)
        encoded = encoder.encode_examples(examples(), STAGE.row_tokens)
        self.samples = encoder.build_samples(encoded, STAGE.row_tokens).weighted_by_length(0.5)
        processor = self.loaded.processor

        def feed(pictures: Any) -> Any:
            with torch.no_grad():
                pixels = torch.cat([pixel_values(processor, p) for p in pictures]).to(dtype)
                return self.loaded.model.encode_images(pixels)

        self.rows = RowPacker(STAGE.row_tokens, 0, feed, pack=pack, fixed_length=True)
        self.parameters = [p for group in self.groups for p in group["params"]]

    def given(self, **of: Any) -> StepInput:
        feed = StepDataset(self.samples, None, self.rows, batch=10, replay_share=0, seed=1, **of)
        step = feed[0]
        assert isinstance(step, StepInput)
        return step

    def gradients(self, micro_rows: int, given: StepInput | None = None) -> tuple[float, list[Any]]:
        steps = TrainStep(
            Accelerator(cpu=True),
            PackedLoss(self.loaded.model),
            [],
            self.parameters,
            clip=1e9,
            micro_rows=micro_rows,
            say=print,
        )
        for parameter in self.parameters:
            parameter.grad = None
        loss = steps.backward(given or self.given())
        return loss, [None if p.grad is None else p.grad.clone() for p in self.parameters]


def _close(one: list[Any], two: list[Any], tolerance: float) -> None:
    assert len(one) == len(two) and any(g is not None and g.abs().max() > 0 for g in one)
    for a, b in zip(one, two, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            scale = max(float(a.abs().max()), 1e-12)
            assert float((a - b).abs().max()) <= tolerance * max(scale, 1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_n_times_one_row_equals_once_n_rows(
    base: Path, dtype: torch.dtype, tolerance: float
) -> None:
    bench = Bench(base, dtype)
    given = bench.given()
    assert len(given.rows) >= 3
    whole_loss, whole = bench.gradients(0, given)
    for micro in (1, 2):
        loss, gradients = bench.gradients(micro, given)
        assert loss == pytest.approx(whole_loss, rel=tolerance)
        _close(whole, gradients, tolerance)


def test_packed_rows_equal_a_row_for_each(base: Path) -> None:
    """Loss and gradients within 1e-5, in fp32."""
    packed, alone = Bench(base, torch.float32), Bench(base, torch.float32, pack=False)
    assert len(packed.given().rows) < len(alone.given().rows) == 10
    loss, gradients = packed.gradients(0)
    other_loss, others = alone.gradients(1)
    assert loss == pytest.approx(other_loss, abs=1e-5)
    _close(gradients, others, 1e-5)


def test_processes_share_the_rows_of_a_step(base: Path) -> None:
    """Every row is computed once, whatever the number of processes, and each has one to compute."""
    bench = Bench(base, torch.float32)
    whole = bench.given()
    for processes in (2, 3, 7):
        parts = [bench.given(rank=rank, processes=processes) for rank in range(processes)]
        assert all(part.rows for part in parts)
        weight = sum(float(row.batch.weights.sum()) for part in parts for row in part.rows)
        assert weight == pytest.approx(sum(float(row.batch.weights.sum()) for row in whole.rows))


def test_out_of_memory_halves_and_gives_the_same_step(base: Path) -> None:
    bench = Bench(base, torch.float64)
    given = bench.given()
    loss, gradients = bench.gradients(0, given)

    class Small(PackedLoss):
        """Has room for one row."""

        def forward(self, batch: Any, features: Any) -> Any:
            if len(batch.input_ids) > 1:
                raise torch.OutOfMemoryError("no room")
            return super().forward(batch, features)

    told: list[str] = []
    steps = TrainStep(
        Accelerator(cpu=True), Small(bench.loaded.model), [], bench.parameters,
        clip=1.0, micro_rows=0, say=told.append,
    )  # fmt: skip
    for parameter in bench.parameters:
        parameter.grad = None
    assert steps.backward(given) == pytest.approx(loss, rel=1e-9)
    assert steps.micro_rows == 1 and "same steps" in told[0]
    _close(gradients, [p.grad for p in bench.parameters], 1e-9)


def test_a_loss_that_is_no_number_names_the_rates_that_count(base: Path) -> None:
    bench = Bench(base, torch.float32)

    class Spoiled(PackedLoss):
        def forward(self, batch: Any, features: Any) -> Any:
            return super().forward(batch, features) * float("nan")

    steps = TrainStep(
        Accelerator(cpu=True), Spoiled(bench.loaded.model), [], bench.parameters,
        clip=1.0, micro_rows=0, say=print, rates=("projector_learning_rate",),
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"\(--set projector_learning_rate=…\).*--resume"):
        steps.step(bench.given(), 1.0, "Stage a, step 1")


def test_lora_stands_on_text_blocks_only(base: Path) -> None:
    bench = Bench(base, torch.float32)
    names = [n for n, p in bench.loaded.model.named_parameters() if p.requires_grad]
    assert any(".lora_A." in n for n in names)
    for name in names:
        assert ("lora_" in name and ".language_model.layers." in name) or "projector" in name
    rows = {row.name: row for row in bench.trainable.summarize_parts()}
    assert rows["vision tower"].trainable == 0 and rows["LoRA"].trainable == rows["LoRA"].parameters
