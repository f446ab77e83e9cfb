"""A run that makes an adapter: the recipe's stages one after the other, resumable at any step."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmchat.errors import DataError, MmchatError, RecipeError
from mmchat.model.heap import give_back_at_once
from mmchat.model.loading import LoadedModel, load_planned
from mmchat.model.quantization import decoder_of
from mmchat.training.accelerate_state import OwnAccelerator
from mmchat.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizers,
    save_checkpoint,
)
from mmchat.training.examples import Samples
from mmchat.training.features import FeatureCache, FeatureReader, pixel_values
from mmchat.training.feeding import Rows, StepFeed
from mmchat.training.judging import judged
from mmchat.training.loop import StepInput, Steps, schedule_factor
from mmchat.training.objectives import PackedLoss, StockLoss, autocast
from mmchat.training.optimizer import build_tuning_optimizers
from mmchat.training.pace import Pace, stage_lines
from mmchat.training.packing import packs
from mmchat.training.preparing import Prepared, StageSamples
from mmchat.training.progress import RECIPE, RunFolder, SampleAnswer, Status, replace_file, writing
from mmchat.training.samples import answer
from mmchat.training.steering import Steering
from mmchat.training.telling import Show, Telling
from mmchat.training.trackers import Trackers
from mmchat.training.trainable import SEEING, Trainable
from mmchat.training.tuning import Tuning, TuningStage, to_tables, tuning_hash

SHOWN_SAMPLES = 3


class Paused(Exception):  # noqa: N818 - somebody asked for it
    """The run ended between two steps."""

    def __init__(self, *, saved: bool, kept: int) -> None:
        """`saved`: all that it has done is in its newest checkpoint; `kept`: the steps that are in it,
        0 where there is none."""
        super().__init__(f"paused, {kept} steps are kept")
        self.saved = saved
        self.kept = kept


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
        show: Show = lambda status, lines: None,
    ) -> None:
        """`status` is what the run tells of itself so far; `show` is given every new one, and all
        lines of the metrics.

        Raises as `load_planned` does, and RecipeError where a checkpoint does not fit.
        """
        self.prepared = prepared
        self.recipe = prepared.recipe
        self.data_sha256 = data_sha256
        self.folder = folder
        self.say = say
        self.device = prepared.plan.device
        self.dtype = prepared.plan.dtype
        self.steering = Steering(say)
        self.own_accelerator = OwnAccelerator(self.device)
        self.accelerator = self.own_accelerator.accelerator
        self.main = self.accelerator.is_main_process
        self.telling = Telling(folder, status, show, main=self.main)
        self.loaded: LoadedModel = load_planned(prepared.plan, self._loading)
        torch.manual_seed(self.recipe.seed)
        self.trainable = Trainable(self.loaded, self.recipe)
        self.cache = FeatureCache(self.loaded) if self.loaded.kind == "visual_prefix" else None
        self.stage_index, self.step = 0, 0
        self.restored: dict[str, Tensor] = {}
        self.restored_by = ""
        """The optimizer whose state `restored` is; "" where the checkpoint does not say it."""
        self.kept = 0
        """Steps that are in the newest checkpoint."""
        self._restore()

    @property
    def status(self) -> Status:
        """What the run tells of itself."""
        return self.telling.status

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
        with self.own_accelerator.active():
            return self._run()

    def _run(self) -> Path:
        if self.prepared.tight:
            give_back_at_once()
        self._write_recipe()
        self._encode_pictures()
        trackers = Trackers(
            self.recipe.trackers if self.main else (), self.folder.folder, to_tables(self.recipe)
        )
        self.telling.trackers = trackers
        with contextlib.closing(trackers), self.steering.heard(), _same_bits(self.device):
            for index in range(self.stage_index, len(self.recipe.stages)):
                if index != self.stage_index:
                    self.stage_index, self.step = index, 0
                self._run_stage(self.recipe.stages[index])
                if self.steering.wanted == "keep":
                    break
            # It may have been asked for while the last evaluation went on.
            if self.steering.agreed(self.accelerator) == "pause":
                raise self._paused()
        return self._save_result()

    def _run_stage(self, stage: TuningStage) -> None:
        groups = self.trainable.begin(stage)
        if self.main:
            for line in stage_lines(stage, self.loaded, self.trainable):
                self.say(line)
        optimizers = build_tuning_optimizers(groups, stage.optimizer, self.dtype)
        if self.restored and self.restored_by not in ("", stage.optimizer):
            self.say(
                f"Stage {stage.name} goes on with {stage.optimizer} in place of {self.restored_by}: what "
                "that one had gathered is left out."
            )
            self.restored = {}
        try:
            restore_optimizers(optimizers, self.restored)
        except ValueError as error:
            raise self._unfit(f"stage {stage.name} trained other weights then", error) from error
        self.restored = {}
        if self.loaded.kind == "stock":
            loss: Any = StockLoss(self.loaded.model, self.loaded.processor, self.dtype)
        else:
            loss = PackedLoss(self.loaded.model, self.dtype, compiled=stage.compile)
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.prepare_model(loss)
        parameters = [p for group in groups for p in group["params"]]
        steps = Steps(
            self.accelerator,
            loss,
            optimizers,
            parameters,
            clip=stage.clip,
            # Rows of which each is one conversation are of several lengths.
            micro_rows=stage.micro_rows if self.packs else 1,
            say=self.say,
            rates=stage.rates,
            parts=self.trainable.parts(groups),
            seeing=SEEING,
        )
        judge = self.accelerator.unwrap_model(loss)
        pace = Pace(stage.steps - self.step + sum(s.steps for s in self._later()))
        samples = self.prepared.of_stage(stage)
        if self.step == 0:
            self._evaluate(stage, judge, samples.held_out)
        self._train_mode(stage)
        batches = self._loader(stage, samples, self.step)
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
            rate = factor * stage.rate
            self.telling.step(self._place(stage), figures, rate, pace, self.device, last=last)
            wanted = self.steering.agreed(self.accelerator)
            looks = last or wanted == "keep" or self.step % stage.evaluate_every == 0
            if looks and wanted != "pause":
                self._evaluate(stage, judge, samples.held_out)
                self._train_mode(stage)
            if (last or wanted or self.step % stage.checkpoint_every == 0) and not steps.suspicious:
                self._save(stage, optimizers)
            if wanted == "pause":
                raise self._paused()
            if wanted == "keep":
                return

    def _paused(self) -> Paused:
        return Paused(saved=self.kept == self.done, kept=self.kept)

    def _place(self, stage: TuningStage) -> dict[str, Any]:
        """Where the run stands, as the metrics name it."""
        return {"stage": stage.name, "step": self.done, "of": self.total}

    @property
    def packs(self) -> bool:
        """Whether several conversations share a row."""
        return self.loaded.kind != "stock" and packs(self.loaded.model.config.get_text_config())

    def _sees_pixels(self, index: int) -> bool:
        """Whether the encoder is another in this stage than in the base: its features are not cached."""
        return any(stage.vision_blocks for stage in self.recipe.stages[: index + 1])

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
            self._feed(),
            packs=self.packs,
            fixed=stage.compile,
        )

    def _feed(self) -> Callable[[Any], Any]:
        """What the loss takes for a row's pictures."""
        if self.loaded.kind == "stock":
            from mmchat.training.samples import StockInputs

            return StockInputs(self.loaded)
        if self.cache is None:
            return lambda pictures: None
        if self._sees_pixels(self.stage_index):
            processor = self.loaded.processor
            return lambda pictures: torch.cat([pixel_values(processor, p) for p in pictures])
        return FeatureReader(self.cache.folder, self.cache.dtype).read

    def _loader(
        self, stage: TuningStage, samples: StageSamples, first: int
    ) -> Iterator[StepInput | MmchatError]:
        feed = StepFeed(
            samples.train,
            samples.replay,
            self._rows(stage),
            batch=stage.batch,
            replay_share=self.recipe.data.replay,
            seed=self.recipe.seed + 1000 * self.stage_index,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        workers = 2 if self._sees_pixels(self.stage_index) else 1
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
    def _evaluate(
        self, stage: TuningStage, judge: PackedLoss | StockLoss, held_out: Samples
    ) -> None:
        """Loss and share of right answers of the held-out samples, and a few answers in words."""
        if not self.main or not held_out.trees:
            return
        self.loaded.model.eval()
        rows = self._rows(stage)
        loss, right = judged(judge, rows, held_out, self.accelerator, at_once=stage.batch)
        self.telling.held_out(self._place(stage), loss, right, self._answers())

    def _answers(self) -> tuple[SampleAnswer, ...]:
        with autocast(self.device, self.dtype):
            return tuple(
                answer(self.loaded, example)
                for example in self.prepared.held_out_examples[:SHOWN_SAMPLES]
            )

    def _encode_pictures(self) -> None:
        """Fills the cache of features, where a stage that is left has the encoder as the base has it."""
        left = range(self.stage_index, len(self.recipe.stages))
        if self.cache is None or all(self._sees_pixels(index) for index in left):
            return
        pictures = self.prepared.train.pictures + self.prepared.held_out.pictures
        if self.prepared.replay is not None:
            pictures = pictures + self.prepared.replay.pictures
        if self.main:

            def tell(done: int, of: int) -> None:
                self.telling.preparing(f"looking at pictures: {done} of {of}")

            with autocast(self.device, self.dtype):  # blocks that will train are in float32 already
                self.cache.fill(pictures, tell)
        self.accelerator.wait_for_everyone()

    def _loading(self, stage: str, fraction: float) -> None:
        self.telling.preparing(f"loading {self.recipe.model}: {stage} {fraction:.0%}")

    def _save(self, stage: TuningStage, optimizers: list[torch.optim.Optimizer]) -> None:
        if self.main:
            tensors = {f"model.{name}": tensor for name, tensor in self.trainable.state().items()}
            tensors |= optimizer_tensors(optimizers)
            state = {
                "stage": stage.name,
                "step": self.step,
                "optimizer": stage.optimizer,
                "base": self.prepared.plan.weights_hash,
                "recipe": tuning_hash(self.recipe),
                "data": self.data_sha256,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
            save_checkpoint(self.folder.folder / "checkpoints", self.done, tensors, state)
        self.kept = self.done
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
        base = self.prepared.plan.weights_hash
        if state.get("base", base) != base:
            raise RecipeError(
                f"The run {self.recipe.name} began with another {self.recipe.model} than the one of that "
                "name now: restore it, or begin again with --restart."
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
        self.restored_by = str(state.get("optimizer", ""))
        self.kept = self.done
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
            replace_file(file, tomli_w.dumps(to_tables(self.recipe)).encode())

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
