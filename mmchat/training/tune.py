"""A run that makes an adapter: the recipe's stages one after the other, resumable at any step."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from mmchat.errors import DataError, MmchatError, RecipeError
from mmchat.model.loading import LoadedModel, load_planned
from mmchat.model.quantization import decoder_of
from mmchat.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizers,
    save_checkpoint,
)
from mmchat.training.features import FeatureCache, FeatureReader, pixel_values
from mmchat.training.feeding import Rows, StepFeed
from mmchat.training.loop import StepFigures, StepInput, Steps, schedule_factor, together
from mmchat.training.objectives import AnswerScores, PackedLoss, StockLoss
from mmchat.training.optimizer import build_tuning_optimizers
from mmchat.training.pace import Pace, memory_of, stage_lines
from mmchat.training.packing import packs
from mmchat.training.plot import plot_losses
from mmchat.training.preparing import Prepared
from mmchat.training.progress import RECIPE, RunFolder, SampleAnswer, Status, writing
from mmchat.training.samples import answer
from mmchat.training.steering import Steering
from mmchat.training.trackers import Trackers
from mmchat.training.trainable import Trainable
from mmchat.training.tuning import Tuning, TuningStage, to_tables, tuning_hash

TOLD_EVERY = 0.5
"""Seconds between two tellings of a status."""
SHOWN_SAMPLES = 3


class Paused(Exception):  # noqa: N818 - somebody asked for it
    """The run ended between two steps, with a checkpoint to go on from."""


class Tune:
    """One run on this process; several processes of `torchrun` or `accelerate launch` share one."""

    def __init__(
        self,
        prepared: Prepared,
        data_sha256: str,
        folder: RunFolder,
        status: Status,
        *,
        say: Callable[[str], None] = lambda line: None,
        show: Callable[[Status, Sequence[dict[str, Any]]], None] = lambda status, lines: None,
    ) -> None:
        """`status` is what the run tells of itself so far; `show` is given every new one, and all
        lines of the metrics.

        Raises as `load_planned` does, and RecipeError where a checkpoint does not fit.
        """
        self.prepared = prepared
        self.recipe = prepared.recipe
        self.data_sha256 = data_sha256
        self.folder = folder
        self.status = status
        self.say = say
        self.show = show
        self.device = prepared.plan.device
        self.steering = Steering(say)
        self._told = 0.0
        self._lines = folder.metrics()
        low = prepared.plan.dtype is torch.bfloat16
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu", mixed_precision="bf16" if low else "no"
        )
        self.main = self.accelerator.is_main_process
        self.loaded: LoadedModel = load_planned(prepared.plan, self._loading)
        torch.manual_seed(self.recipe.seed)
        self.trainable = Trainable(self.loaded, self.recipe)
        self.cache = FeatureCache(self.loaded) if self.loaded.kind == "visual_prefix" else None
        self.stage_index, self.step = 0, 0
        self.restored: dict[str, Tensor] = {}
        self._restore()

    @property
    def done(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.recipe.stages[: self.stage_index]) + self.step

    @property
    def total(self) -> int:
        return sum(stage.steps for stage in self.recipe.stages)

    def run(self) -> Path:
        """All stages that are left; -> the folder of what was made, `adapter` or `model` in the run's.

        Raises Paused after SIGINT or SIGTERM, RecipeError and DataError for what can be mended.
        """
        self._write_recipe()
        self._encode_pictures()
        self.trackers = Trackers(
            self.recipe.trackers if self.main else (), self.folder.folder, to_tables(self.recipe)
        )
        with contextlib.closing(self.trackers), self.steering.heard(), _same_bits(self.device):
            for index in range(self.stage_index, len(self.recipe.stages)):
                if index != self.stage_index:
                    self.stage_index, self.step = index, 0
                self._run_stage(self.recipe.stages[index])
                if self.steering.wanted == "keep":
                    break
        return self._save_result()

    def _run_stage(self, stage: TuningStage) -> None:
        groups = self.trainable.begin(stage)
        if self.main:
            for line in stage_lines(stage, self.loaded, self.trainable):
                self.say(line)
        optimizers = build_tuning_optimizers(groups, stage.optimizer, self.loaded.compute_dtype)
        try:
            restore_optimizers(optimizers, self.restored)
        except ValueError as error:
            raise self._unfit(f"stage {stage.name} trained other weights then", error) from error
        self.restored = {}
        if self.loaded.kind == "stock":
            loss: Any = StockLoss(self.loaded.model, self.loaded.processor)
        else:
            loss = PackedLoss(self.loaded.model, compiled=stage.compile)
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.prepare_model(loss)
        parameters = [p for group in groups for p in group["params"]]
        steps = Steps(
            self.accelerator,
            loss,
            optimizers,
            parameters,
            clip=stage.clip,
            micro_rows=1 if self.loaded.kind == "stock" else stage.micro_rows,
            say=self.say,
        )
        judge = self.accelerator.unwrap_model(loss)
        pace = Pace(stage.steps - self.step + sum(s.steps for s in self._later()))
        if self.step == 0:
            self._evaluate(stage, judge)
        self._train_mode(stage)
        batches = self._loader(stage, self.step)
        for step in range(self.step, stage.steps):
            given = self._next(batches)
            # All chance of a step (dropout) comes from its number: nothing has to be kept for a resume.
            place = (self.recipe.seed, self.stage_index, step, self.accelerator.process_index)
            torch.manual_seed(np.random.SeedSequence(place).generate_state(1)[0].item())
            factor = schedule_factor(stage.schedule, step, stage.steps, stage.warmup, stage.decay)
            figures = steps.step(given, factor, f"Stage {stage.name}, step {step + 1}")
            self.step = step + 1
            pace.add(figures)
            last = self.step == stage.steps
            self._tell(stage, figures, factor, pace, last=last)
            wanted = self.steering.agreed(self.accelerator)
            looks = last or wanted == "keep" or self.step % stage.evaluate_every == 0
            if looks and wanted != "pause":
                self._evaluate(stage, judge)
                self._train_mode(stage)
            if (last or wanted or self.step % stage.checkpoint_every == 0) and not steps.suspicious:
                self._save(stage, optimizers)
            if wanted == "pause":
                raise Paused
            if wanted == "keep":
                return

    def _later(self) -> tuple[TuningStage, ...]:
        return self.recipe.stages[self.stage_index + 1 :]

    def _train_mode(self, stage: TuningStage) -> None:
        """Dropout of LoRA and checkpointing of the text model; all else answers as it always does."""
        model = self.loaded.model
        model.eval()
        decoder = decoder_of(model)
        decoder.train()
        if stage.gradient_checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
        elif getattr(decoder, "is_activation_checkpointing", False):
            decoder.gradient_checkpointing_disable()

    def _rows(self, stage: TuningStage) -> Rows:
        return Rows(
            stage.row_tokens,
            self.loaded.tokenizer.pad_token_id or 0,
            self._feed(stage),
            packs=self.loaded.kind != "stock" and packs(self.loaded.model.config.get_text_config()),
            fixed=stage.compile,
        )

    def _feed(self, stage: TuningStage) -> Callable[[Any], Any]:
        """What the loss takes for a row's pictures."""
        if self.loaded.kind == "stock":
            from mmchat.training.samples import StockInputs

            return StockInputs(self.loaded)
        if self.cache is None:
            return lambda pictures: None
        if stage.vision_blocks:
            processor = self.loaded.processor
            return lambda pictures: torch.cat([pixel_values(processor, p) for p in pictures])
        return FeatureReader(self.cache.folder, self.cache.dtype).read

    def _loader(self, stage: TuningStage, first: int) -> Iterator[StepInput | MmchatError]:
        feed = StepFeed(
            self.prepared.train,
            self.prepared.replay,
            self._rows(stage),
            batch=stage.batch,
            replay_share=self.recipe.data.replay,
            seed=self.recipe.seed + 1000 * self.stage_index,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        workers = 2 if stage.vision_blocks else 1
        return iter(
            DataLoader(
                feed,
                batch_size=None,
                sampler=range(first, stage.steps),
                num_workers=workers,
                prefetch_factor=4,
            )
        )

    @staticmethod
    def _next(batches: Iterator[StepInput | MmchatError]) -> StepInput:
        began = time.monotonic()
        given = next(batches)
        if isinstance(given, MmchatError):
            raise given
        given.waited = time.monotonic() - began
        return given

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def _evaluate(self, stage: TuningStage, judge: PackedLoss | StockLoss) -> None:
        """Loss and share of right answers of the held-out samples, and a few answers in words."""
        held_out = self.prepared.held_out
        if not self.main or not held_out.trees:
            return
        self.loaded.model.eval()
        rows = self._rows(stage)
        scores = AnswerScores()
        total = weight = 0.0
        for start in range(0, len(held_out.trees), stage.batch):
            trees = [
                (tree, held_out.pictures) for tree in held_out.trees[start : start + stage.batch]
            ]
            for row in rows(trees):
                batch, features = together([row], self.accelerator.device)
                with self.accelerator.autocast():
                    loss, right = judge.judged(batch, features)
                total += float(loss)
                weight += float(batch.weights.sum())
                scores.add(batch, right.cpu())
        asked = sum(scores.asked.values())
        share = sum(scores.right.values()) / max(asked, 1)
        self.status = msgspec.structs.replace(
            self.status, held_out_loss=total / max(weight, 1e-9), samples=self._answers()
        )
        figures = {
            "stage": stage.name,
            "step": self.done,
            "of": self.total,
            "held_out_loss": self.status.held_out_loss,
            "held_out_right": share,
        }
        self._log(figures)
        self._show()
        plot_losses(self.folder.metrics(), self.folder.folder / "loss.png")

    def _answers(self) -> tuple[SampleAnswer, ...]:
        with self.accelerator.autocast():
            return tuple(
                answer(self.loaded, example)
                for example in self.prepared.held_out_examples[:SHOWN_SAMPLES]
            )

    def _encode_pictures(self) -> None:
        """Fills the cache of features, where the encoder stays as it is."""
        if self.cache is None or any(stage.vision_blocks for stage in self.recipe.stages):
            return
        pictures = self.prepared.train.pictures + self.prepared.held_out.pictures
        if self.prepared.replay is not None:
            pictures = pictures + self.prepared.replay.pictures
        if self.main:

            def tell(done: int, of: int) -> None:
                self._prepare(f"looking at pictures: {done} of {of}")

            self.cache.fill(pictures, tell)
        self.accelerator.wait_for_everyone()

    def _loading(self, stage: str, fraction: float) -> None:
        self._prepare(f"loading {self.recipe.model}: {stage} {fraction:.0%}")

    def _prepare(self, words: str) -> None:
        self.status = msgspec.structs.replace(self.status, state="preparing", said=words)
        if time.monotonic() - self._told >= TOLD_EVERY:
            self._show()

    def _tell(
        self, stage: TuningStage, figures: StepFigures, factor: float, pace: Pace, *, last: bool
    ) -> None:
        if not self.main:
            return
        line = {
            "stage": stage.name,
            "step": self.done,
            "of": self.total,
            "loss": figures.loss,
            "norm": figures.norm,
            "learning_rate": factor * (stage.learning_rate or stage.projector_learning_rate),
            "tokens_per_second": pace.tokens_per_second,
            "samples_per_second": pace.samples_per_second,
            "waiting": pace.waiting,
        }
        every = max(1, self.total // 400)
        if last or self.done % every == 0:
            self._log(line)
        self.status = msgspec.structs.replace(
            self.status,
            state="training",
            said="",
            stage=stage.name,
            step=self.done,
            steps=self.total,
            loss=figures.loss,
            learning_rate=line["learning_rate"],
            tokens_per_second=pace.tokens_per_second,
            samples_per_second=pace.samples_per_second,
            memory_bytes=memory_of(self.device),
            waiting=pace.waiting,
            seconds_left=pace.seconds_left,
        )
        if last or time.monotonic() - self._told >= TOLD_EVERY:
            self._show()

    def _log(self, figures: dict[str, Any]) -> None:
        self.folder.log(**figures)
        self._lines.append(figures)
        self.trackers.log(self.done, figures)

    def _show(self) -> None:
        if self.main:
            self._told = time.monotonic()
            self.folder.tell(self.status)
            self.show(self.status, self._lines)

    def _save(self, stage: TuningStage, optimizers: list[torch.optim.Optimizer]) -> None:
        if self.main:
            tensors = {f"model.{name}": tensor for name, tensor in self.trainable.state().items()}
            tensors |= optimizer_tensors(optimizers)
            state = {
                "stage": stage.name,
                "step": self.step,
                "recipe": tuning_hash(self.recipe),
                "data": self.data_sha256,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
            save_checkpoint(self.folder.folder / "checkpoints", self.done, tensors, state)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        saved = load_checkpoint(self.folder.folder / "checkpoints")
        if saved is None:
            return
        tensors, state = saved
        if state.get("data") != self.data_sha256:
            raise DataError(
                f"The data is not what the run {self.recipe.name} began with: restore it, or begin "
                "again with --restart."
            )
        names = [stage.name for stage in self.recipe.stages]
        if state.get("stage") not in names:
            raise RecipeError(
                f"The run {self.recipe.name} was in stage {state.get('stage')}, which the recipe has not: "
                "restore it, or begin again with --restart."
            )
        if state.get("recipe") != tuning_hash(self.recipe):
            self.say("The recipe has changed since the last checkpoint: going on with the new one.")
        try:
            self.trainable.load_state(
                {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            )
        except ValueError as error:
            raise self._unfit("other weights were trained then", error) from error
        self.stage_index, self.step = names.index(state["stage"]), int(state["step"])
        self.restored = {k: v for k, v in tensors.items() if k.startswith("optimizer.")}
        if self.step >= self.recipe.stages[self.stage_index].steps:
            self.stage_index, self.step, self.restored = self.stage_index + 1, 0, {}

    def _unfit(self, why: str, error: Exception) -> RecipeError:
        return RecipeError(
            f"The checkpoint in {self.folder.folder} does not fit, for {why} ({error}): begin again with "
            "--restart."
        )

    def _write_recipe(self) -> None:
        file = self.folder.folder / RECIPE
        if self.main:
            with writing(file):
                file.write_text(tomli_w.dumps(to_tables(self.recipe)), encoding="utf-8")

    def _save_result(self) -> Path:
        """The adapter's folder; a complete model's after `full`."""
        whole = any(stage.method == "full" for stage in self.recipe.stages)
        out = self.folder.folder / ("model" if whole else "adapter")
        if self.main:
            with writing(out):
                if whole:
                    self.trainable.save_model(out)
                else:
                    self.trainable.save_adapter(out, self.recipe.name, {})
                tables = to_tables(_to_give_away(self.recipe))
                (out / RECIPE).write_text(tomli_w.dumps(tables), "utf-8")
        self.accelerator.wait_for_everyone()
        return out


def _to_give_away(recipe: Tuning) -> Tuning:
    """The recipe without the folders of this machine that its data lies in.

    Of the data its last name stays, which tells what it was; nothing looks for it there. Where its
    pictures lie is looked for, and a last name alone would lead nowhere.
    """
    data = msgspec.structs.replace(recipe.data, source=Path(recipe.data.source).name, images="")
    return msgspec.structs.replace(recipe, data=data)


@contextlib.contextmanager
def _same_bits(device: torch.device) -> Iterator[None]:
    """On a CPU every operation gives the same bits at every start: what resuming is held to."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
