"""Trains an adapter or a model: load, fit, validate, save. A run can be resumed at any step.

Training starts here. `prepare` resolves the recipe, `Trainer(…)` loads the base, and `run()` trains the
recipe's stages one after the other and saves the result.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
import torch

from mmchat.display.numbers import format_percent
from mmchat.errors import MmchatError
from mmchat.files import write_file
from mmchat.memory.machine import set_eager_trim
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_planned
from mmchat.model.quantization import decoder_of
from mmchat.training.checkpoint import (
    ResumePoint,
    load_resume_point,
    optimizer_tensors,
    restore_stage_optimizers,
    save_checkpoint,
)
from mmchat.training.dataloader import PictureLoader, RowPacker, StepDataset, build_dataloader
from mmchat.training.feature_cache import FeatureCache, FeatureReader
from mmchat.training.finetune_config import FinetuneConfig, StageConfig, config_hash, to_tables
from mmchat.training.losses import HfVlmLoss, PackedLoss, autocast
from mmchat.training.optimizer import build_optimizers
from mmchat.training.packing import can_pack, sample_attention
from mmchat.training.prepare import PreparedRun
from mmchat.training.process_state import IsolatedAccelerator, StopSignals, deterministic
from mmchat.training.run_folder import RECIPE, RunFolder, SampleAnswer, Status, writing
from mmchat.training.run_log import RunLogger, Show, Throughput
from mmchat.training.trackers import Trackers
from mmchat.training.train_step import StepInput, TrainStep, schedule_factor
from mmchat.training.trainable import NEEDS_PICTURES, Trainable
from mmchat.training.validation import sample_answer, validate, validation_rows

SAMPLE_ANSWER_COUNT = 3


class TrainingPaused(Exception):  # noqa: N818 - not an error, because the user asked for it
    """The run stopped between two steps."""

    def __init__(self, *, saved: bool, kept: int) -> None:
        """saved: whether the newest checkpoint has all steps. kept: the steps in it; 0 if there is none."""
        super().__init__(f"paused, {kept} steps are in the checkpoint")
        self.saved = saved
        self.kept = kept


class Trainer:
    """A training run in this process, or in one of the processes of `torchrun` or `accelerate launch`."""

    def __init__(
        self,
        prepared: PreparedRun,
        data_sha256: str,
        folder: RunFolder,
        status: Status,
        *,
        say: Callable[[str], None] = lambda line: None,
        show: Show = lambda status, lines: None,
    ) -> None:
        """Loads the base, and the newest checkpoint in `folder` if there is one.

        status: the run's status so far. show: called with every new status and all metrics lines. Raises
        as `load_planned` does, and RecipeError if a checkpoint does not fit.
        """
        self.prepared = prepared
        self.recipe = prepared.recipe
        self.data_sha256 = data_sha256
        self.folder = folder
        self.say = say
        self.device = prepared.plan.device
        self.dtype = prepared.plan.dtype
        self.stop_signals = StopSignals(say)
        self.isolated_accelerator = IsolatedAccelerator(self.device)
        self.accelerator = self.isolated_accelerator.accelerator
        self.main = self.accelerator.process_index == 0
        self.run_logger = RunLogger(folder, status, show, main=self.main)
        self.loaded: LoadedModel = load_planned(prepared.plan, self._loading)
        torch.manual_seed(self.recipe.seed)
        self.trainable = Trainable(self.loaded, self.recipe)
        self.feature_cache = (
            FeatureCache(self.loaded) if self.loaded.kind == "visual_prefix" else None
        )
        self.resume_point: ResumePoint | None = load_resume_point(
            folder, self.recipe, self.trainable, data_sha256, prepared.plan.weights_hash, say
        )
        point = self.resume_point
        self.stage_index, self.step = (point.stage_index, point.step) if point else (0, 0)
        self.kept_steps = point.kept_steps if point else 0
        """Steps in the newest checkpoint."""

    @property
    def status(self) -> Status:
        return self.run_logger.status

    @property
    def done(self) -> int:
        """Steps done, over all stages."""
        return sum(stage.steps for stage in self.recipe.stages[: self.stage_index]) + self.step

    @property
    def total(self) -> int:
        return sum(stage.steps for stage in self.recipe.stages)

    def run(self) -> Path:
        """Trains the remaining stages and saves; -> `adapter` or `model` in the run's folder.

        Raises TrainingPaused after SIGINT, SIGTERM or SIGHUP, RecipeError and DataError for errors that
        the user can correct.
        """
        with self.isolated_accelerator.active(), sample_attention():
            self.fit()
            return self.save()

    def fit(self) -> None:
        """Trains the remaining stages, starting at the step of the checkpoint."""
        if self.prepared.tight:
            set_eager_trim()
        if self.main:
            tables = tomli_w.dumps(to_tables(self.recipe))
            file = self.folder.folder / RECIPE
            with writing(file):
                write_file(file, tables, private=False, synced=True)
        self._fill_feature_cache()
        trackers = Trackers(
            self.recipe.trackers if self.main else (), self.folder.folder, to_tables(self.recipe)
        )
        self.run_logger.trackers = trackers
        with contextlib.closing(trackers), self.stop_signals.listen(), deterministic(self.device):
            for index in range(self.stage_index, len(self.recipe.stages)):
                if index != self.stage_index:
                    self.stage_index, self.step = index, 0
                self._fit_stage(self.recipe.stages[index])
                if self.stop_signals.requested == "keep":
                    break
            # The user may have paused during the last validation.
            if self.stop_signals.agreed(self.accelerator) == "pause":
                raise self._paused()

    def save(self) -> Path:
        """Writes the adapter's folder; after method `full`, the folder of a complete model."""
        full = any(stage.method == "full" for stage in self.recipe.stages)
        out = self.folder.folder / ("model" if full else "adapter")
        if self.main:
            with writing(out):
                if full:
                    self.trainable.save_model(out)
                else:
                    self.trainable.save_adapter(out, self.recipe.name)
                tables = to_tables(_without_local_paths(self.recipe))
                (out / RECIPE).write_text(tomli_w.dumps(tables), "utf-8")
        self.accelerator.wait_for_everyone()
        return out

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def validate(self, stage: StageConfig, loss_module: Any, samples: PreparedRun) -> None:
        """Logs loss and accuracy on the held-out samples, and a few sample answers."""
        if not self.main or not samples.held_out.trees:
            return
        self.loaded.model.eval()
        rows = validation_rows(self._rows(stage), samples.held_out, stage.batch)
        result = validate(loss_module, rows, self.device)
        self.run_logger.validation(self._position(stage), result, self._sample_answers())

    def _fit_stage(self, stage: StageConfig) -> None:
        groups = self.trainable.start_stage(stage)
        if self.main:
            for line in self.trainable.describe_stage(stage):
                self.say(line)
        optimizers = build_optimizers(groups, stage.optimizer, self.dtype)
        restore_stage_optimizers(self.resume_point, optimizers, stage, self.folder, self.say)
        self.resume_point = None
        loss_module = self._loss_module(stage)
        train_step = TrainStep(
            self.accelerator,
            loss_module,
            optimizers,
            [parameter for group in groups for parameter in group["params"]],
            clip=stage.clip,
            # Without packing, rows have different lengths.
            micro_rows=stage.micro_rows if self.can_pack else 1,
            say=self.say,
            rates=stage.rates,
            parts=self.trainable.parameters_by_part(groups),
            needs_pictures=NEEDS_PICTURES,
        )
        plain_loss = self.accelerator.unwrap_model(loss_module)
        later = self.recipe.stages[self.stage_index + 1 :]
        throughput = Throughput(stage.steps - self.step + sum(s.steps for s in later))
        samples = self.prepared.of_stage(stage)
        if self.step == 0:
            self.validate(stage, plain_loss, samples)
        self._train_mode(stage)
        batches = self._dataloader(stage, samples, self.step)
        for step in range(self.step, stage.steps):
            step_input = _next(batches)
            self._seed(step)
            factor = schedule_factor(stage.schedule, step, stage.steps, stage.warmup, stage.decay)
            result = train_step.step(step_input, factor, f"Stage {stage.name}, step {step + 1}")
            self.step = step + 1
            throughput.add(result)
            last = self.step == stage.steps
            self.run_logger.step(
                self._position(stage),
                result,
                factor * stage.rate,
                throughput,
                self.device,
                last=last,
            )
            requested = self.stop_signals.agreed(self.accelerator)
            due = last or requested == "keep" or self.step % stage.evaluate_every == 0
            if due and requested != "pause":
                self.validate(stage, plain_loss, samples)
                self._train_mode(stage)
            due = last or bool(requested) or self.step % stage.checkpoint_every == 0
            if due and not train_step.spiked:
                self._save_checkpoint(stage, optimizers)
            if requested == "pause":
                raise self._paused()
            if requested == "keep":
                return

    def _loss_module(self, stage: StageConfig) -> Any:
        module: torch.nn.Module
        if self.loaded.kind == "hf_vlm":
            module = HfVlmLoss(self.loaded.model, self.loaded.processor, self.dtype)
        else:
            module = PackedLoss(self.loaded.model, self.dtype, compiled=stage.compile)
        if self.accelerator.num_processes > 1:
            return self.accelerator.prepare_model(module)
        return module

    def _seed(self, step: int) -> None:
        """Seeds a step's randomness (dropout) from its number, so that a resume need not restore it."""
        entropy = (self.recipe.seed, self.stage_index, step, self.accelerator.process_index)
        torch.manual_seed(np.random.SeedSequence(entropy).generate_state(1)[0].item())

    def _paused(self) -> TrainingPaused:
        return TrainingPaused(saved=self.kept_steps == self.done, kept=self.kept_steps)

    def _position(self, stage: StageConfig) -> dict[str, Any]:
        return {"stage": stage.name, "step": self.done, "of": self.total}

    @property
    def can_pack(self) -> bool:
        """Whether several conversations can share a row."""
        return self.loaded.kind != "hf_vlm" and can_pack(self.loaded.model.config.get_text_config())

    def _reads_pixels(self, index: int) -> bool:
        """Whether a stage runs the vision encoder: if it trains or has trained, or if caching is off."""
        changed = any(stage.vision_blocks for stage in self.recipe.stages[: index + 1])
        return changed or not self.recipe.data.cache_features

    def _train_mode(self, stage: StageConfig) -> None:
        """Puts the text model in train mode (LoRA dropout, checkpointing); the rest stays in eval mode."""
        self.loaded.model.eval()
        decoder = decoder_of(self.loaded.model)
        decoder.train()
        if stage.gradient_checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
        elif getattr(decoder, "is_activation_checkpointing", False):
            decoder.gradient_checkpointing_disable()

    def _rows(self, stage: StageConfig) -> RowPacker:
        reader = None
        if self.feature_cache is not None and not self._reads_pixels(self.stage_index):
            reader = FeatureReader(self.feature_cache.folder, self.feature_cache.dtype)
        return RowPacker(
            stage.row_tokens,
            self.loaded.tokenizer.pad_token_id or 0,
            PictureLoader(self.loaded, reader),
            pack=self.can_pack,
            fixed_length=stage.compile,
        )

    def _dataloader(
        self, stage: StageConfig, samples: PreparedRun, first: int
    ) -> Iterator[StepInput | MmchatError]:
        dataset = StepDataset(
            samples.train,
            samples.replay,
            self._rows(stage),
            batch=stage.batch,
            replay_share=self.recipe.data.replay,
            seed=self.recipe.seed + 1000 * self.stage_index,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        workers = 2 if self._reads_pixels(self.stage_index) else 1
        return build_dataloader(dataset, range(first, stage.steps), workers)

    def _sample_answers(self) -> tuple[SampleAnswer, ...]:
        with autocast(self.device, self.dtype):
            return tuple(
                sample_answer(self.loaded, example)
                for example in self.prepared.held_out_examples[:SAMPLE_ANSWER_COUNT]
            )

    def _fill_feature_cache(self) -> None:
        """Caches features, if a remaining stage uses the base's unchanged encoder."""
        remaining = range(self.stage_index, len(self.recipe.stages))
        if self.feature_cache is None or all(self._reads_pixels(index) for index in remaining):
            return
        pictures = self.prepared.train.pictures + self.prepared.held_out.pictures
        if self.prepared.replay is not None:
            pictures = pictures + self.prepared.replay.pictures
        if self.main:

            def progress(done: int, of: int) -> None:
                self.run_logger.preparing(f"encoding pictures: {done} of {of}")

            # Autocast, because blocks that a later stage trains are already float32.
            with autocast(self.device, self.dtype):
                self.feature_cache.fill(pictures, progress)
        self.accelerator.wait_for_everyone()

    def _loading(self, stage: str, fraction: float) -> None:
        self.run_logger.preparing(
            f"loading {self.recipe.model}: {stage} {format_percent(fraction)}"
        )

    def _save_checkpoint(self, stage: StageConfig, optimizers: list[torch.optim.Optimizer]) -> None:
        if self.main:
            tensors = {f"model.{name}": tensor for name, tensor in self.trainable.state().items()}
            tensors |= optimizer_tensors(optimizers)
            state = {
                "stage": stage.name,
                "step": self.step,
                "optimizer": stage.optimizer,
                "base": self.prepared.plan.weights_hash,
                "recipe": config_hash(self.recipe),
                "data": self.data_sha256,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
            save_checkpoint(self.folder.folder / "checkpoints", self.done, tensors, state)
        self.kept_steps = self.done
        self.accelerator.wait_for_everyone()


def _next(batches: Iterator[StepInput | MmchatError]) -> StepInput:
    start = time.monotonic()
    step_input = next(batches)
    if isinstance(step_input, MmchatError):
        raise step_input
    step_input.wait_seconds = time.monotonic() - start
    return step_input


def _without_local_paths(recipe: FinetuneConfig) -> FinetuneConfig:
    """The recipe without paths of this machine.

    The last part of the data's path stays as a hint; nothing opens it. The pictures' folder would be
    opened, so it is removed.
    """
    data = msgspec.structs.replace(recipe.data, source=Path(recipe.data.source).name, images="")
    return msgspec.structs.replace(recipe, data=data)
