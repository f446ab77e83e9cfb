"""A training run: the recipe's stages one after the other, resumable at any step."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from mmchat.errors import DataError, MmchatError, RecipeError
from mmchat.model.quantization import compute_dtype
from mmchat.training.base import (
    build_config,
    build_model,
    build_processor,
    save_base,
    train_tokenizer,
)
from mmchat.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizers,
    save_checkpoint,
)
from mmchat.training.collation import AnswerSteps, CellSteps, Collator, ToldSteps
from mmchat.training.dataset import PreparedData
from mmchat.training.loop import Updates
from mmchat.training.objectives import (
    AnswerScores,
    CellHeads,
    answer_loss,
    encode_pictures,
    normalize,
)
from mmchat.training.optimizer import build_optimizers, schedule
from mmchat.training.packing import Batch, pack, trim
from mmchat.training.progress import writing
from mmchat.training.recipe import Recipe, Stage, read_recipe, recipe_hash

TOKENIZER_TEXTS = 20_000
EVALUATED_SAMPLES = 160


def train(
    data: Path,
    recipe: Path,
    out: Path,
    *,
    resume: bool = False,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Path:
    """Runs `recipe` on `data` (a folder with `train/` and `held-out/`), writes the model into `out`.

    `out/checkpoints` holds what `resume` goes on from, `out/metrics.jsonl` the
    losses. Returns the finished model's folder, `out/model`.

    Raises RecipeError or DataError for what the person can mend.
    """
    return Run(data, read_recipe(recipe, overrides), out, resume=resume, say=say).run()


class Run:
    """One run, from an empty folder or from its newest checkpoint."""

    def __init__(
        self, data: Path, recipe: Recipe, out: Path, *, resume: bool, say: Callable[[str], None]
    ) -> None:
        self.recipe = recipe
        self.out = out
        self.say = say
        self.train_data = PreparedData(data / "train")
        self.held_out = PreparedData(data / "held-out")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = compute_dtype(self.device)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        saved = load_checkpoint(out / "checkpoints")
        if saved is not None and not resume:
            raise RecipeError(
                f"{out} holds a run already: go on with --resume, or choose another folder."
            )
        self.tokenizer = self._tokenizer(begun=saved is not None)
        self.config = build_config(recipe.base, self.tokenizer)
        self.processor = build_processor(self.tokenizer, self.config)
        self.model = build_model(self.config, recipe.seed).to(self.device)
        self.heads = self._heads().to(self.device)
        self.stage_index, self.step = 0, 0
        self.restored: dict[str, Tensor] = {}
        if saved is not None:
            self._restore(*saved)

    def run(self) -> Path:
        """All stages that are left, then the finished model."""
        for index in range(self.stage_index, len(self.recipe.stages)):
            if index != self.stage_index:
                self.stage_index, self.step = index, 0
            self._run_stage(self.recipe.stages[index])
        model = self.out / "model"
        with writing(model):
            save_base(self.model, self.processor, model)
            tables = msgspec.to_builtins(self.recipe)
            (model / "recipe.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
        self.say(f"done: {model}")
        return model

    def _run_stage(self, stage: Stage) -> None:
        trained = self._freeze(stage)
        vocabulary = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        optimizers = build_optimizers(
            trained, stage.learning_rate, stage.weight_decay, vocabulary, self.dtype
        )
        try:
            restore_optimizers(optimizers, self.restored)
        except ValueError as error:
            raise self._unfit(f"stage {stage.name} trained other parts then", error) from error
        self.restored = {}
        parameters = [p for module in trained for p in module.parameters() if p.requires_grad]
        key = f"stages.{self.stage_index}.learning_rate"
        updates = Updates(optimizers, parameters, clip=stage.clip, rates=(key,))
        step_loss = self._objective(stage)
        started = time.monotonic()
        first = self.step
        for step, batch in zip(range(first, stage.steps), self._loader(stage, first), strict=True):
            if isinstance(batch, MmchatError):
                raise batch
            loss = step_loss(batch)
            loss.backward()
            value = loss.item()
            factor = schedule(step, stage.steps, stage.warmup, stage.decay)
            norm = updates.apply(value, factor, f"Stage {stage.name}, step {step + 1}")
            self.step = step + 1
            if self.step % 20 == 0:
                pace = (time.monotonic() - started) / (self.step - first)
                self._log(stage, loss=value, norm=norm, seconds_a_step=pace)
            if self.step % stage.evaluate_every == 0 or self.step == stage.steps:
                self._log(stage, held_out=self._evaluate(stage))
            due = self.step % stage.checkpoint_every == 0 or self.step == stage.steps
            if due and not updates.suspicious:
                self._save(stage, optimizers)

    def _freeze(self, stage: Stage) -> list[nn.Module]:
        """Only what the stage trains has gradients; returns those modules."""
        inner = self.model.model
        parts: dict[str, list[nn.Module]] = {
            "vision_tower": [inner.vision_tower],
            "projector": [inner.multi_modal_projector],
            "language_model": [inner.language_model, self.model.lm_head],
        }
        self.model.requires_grad_(False)
        trained = [module for part in stage.trains for module in parts[part]]
        if stage.objective == "cells":
            trained.append(self.heads)
        for module in trained:
            module.requires_grad_(True)
        return trained

    def _objective(self, stage: Stage) -> Callable[[Any], Tensor]:
        text_model = self.model.model.language_model
        if stage.objective == "answers" and self.recipe.compile:
            text_model = torch.compile(text_model)

        def cells(batch: tuple[Tensor, Tensor]) -> Tensor:
            pictures, labels = (tensor.to(self.device) for tensor in batch)
            with self._autocast():
                features = self.model.encode_images(normalize(pictures))
                return self.heads.loss(features, labels)[0]

        def answers(batch: Batch) -> Tensor:
            with self._autocast():
                features = encode_pictures(self.model, self._pictures(batch))
                moved = batch.to(self.device)
                total = answer_loss(self.model, text_model, moved, features)[0]
                return total / moved.weights.sum()

        return cells if stage.objective == "cells" else answers

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def _evaluate(self, stage: Stage) -> dict[str, float]:
        """Held-out figures: share right by channel (`cells`) or by question type (`answers`)."""
        with self._autocast():
            if stage.objective == "cells":
                pictures = torch.from_numpy(self.held_out.images[:256].copy()).to(self.device)
                labels = torch.from_numpy(self.held_out.cells[:256].copy()).to(self.device)
                features = self.model.encode_images(normalize(pictures))
                return self.heads.loss(features, labels)[1]
            scores = AnswerScores()
            collator = self._collator(stage)
            trees = [
                trim(collator.tree(self.held_out[i]), stage.row_tokens)
                for i in range(min(EVALUATED_SAMPLES, len(self.held_out)))
            ]
            rows = pack(trees, stage.row_tokens)
            for start in range(0, len(rows), stage.rows):
                batch = collator.batch(rows[start : start + stage.rows], stage.row_tokens)
                text_model = self.model.model.language_model
                features = encode_pictures(self.model, self._pictures(batch, self.held_out))
                correct = answer_loss(self.model, text_model, batch.to(self.device), features)[1]
                scores.add(batch, correct.cpu())
            return scores.shares()

    def _pictures(self, batch: Batch, data: PreparedData | None = None) -> Tensor:
        images = (data or self.train_data).images[batch.images]
        return torch.from_numpy(images).to(self.device)

    def _loader(self, stage: Stage, first: int) -> DataLoader[Any]:
        """Batches of the steps from `first` on, made ahead by one worker process."""
        seed = self.recipe.seed + 1000 * self.stage_index
        steps: CellSteps | AnswerSteps
        if stage.objective == "cells":
            steps = CellSteps(self.train_data, rows=stage.rows, seed=seed)
        else:
            steps = AnswerSteps(
                self.train_data,
                self._collator(stage),
                rows=stage.rows,
                row_tokens=stage.row_tokens,
                seed=seed,
            )
        return DataLoader(
            ToldSteps(steps),
            batch_size=None,
            sampler=range(first, stage.steps),
            num_workers=1,
            prefetch_factor=4,
        )

    def _collator(self, stage: Stage) -> Collator:
        return Collator(
            self.tokenizer,
            self.processor.image_token,
            self.processor.prefix_tokens,
            stage.length_weight,
        )

    def _tokenizer(self, *, begun: bool) -> Any:
        """Trained once on the data's text and kept beside the checkpoints.

        A run that has `begun` goes on with the one that its weights know,
        whatever the library that trains one would make today.
        """
        kept = self.out / "tokenizer"
        if begun and kept.is_dir():
            return PreTrainedTokenizerFast.from_pretrained(kept)
        context = int(self.recipe.base.text.get("max_position_embeddings", 2048))
        texts = self.train_data.texts(TOKENIZER_TEXTS)
        tokenizer = train_tokenizer(texts, self.recipe.base.vocabulary_size, context)
        with writing(kept):
            kept.mkdir(exist_ok=True)  # transformers only warns of a file in its place
            tokenizer.save_pretrained(kept)
        return tokenizer

    def _heads(self) -> CellHeads:
        torch.manual_seed(self.recipe.seed + 1)
        return CellHeads(self.config.vision_config.hidden_size, self.train_data.classes)

    def _autocast(self) -> AbstractContextManager[Any]:
        low = self.dtype is not torch.float32
        context: AbstractContextManager[Any] = torch.autocast(
            self.device.type, self.dtype if low else torch.bfloat16, enabled=low
        )
        return context

    def _save(self, stage: Stage, optimizers: list[torch.optim.Optimizer]) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"heads.{k}": v for k, v in self.heads.state_dict().items()}
        tensors |= optimizer_tensors(optimizers)
        done = sum(s.steps for s in self.recipe.stages[: self.stage_index]) + self.step
        state = {
            "stage": stage.name,
            "step": self.step,
            "recipe": recipe_hash(self.recipe),
            "data": self.train_data.fingerprint,
        }
        save_checkpoint(self.out / "checkpoints", done, tensors, state)

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if state["data"] != self.train_data.fingerprint:
            raise DataError(
                f"{self.train_data.folder} is not the data that this run began with: "
                "restore it, or begin again in another folder."
            )
        names = [stage.name for stage in self.recipe.stages]
        if state["stage"] not in names:
            raise RecipeError(
                f"The run in {self.out} was in stage {state['stage']}, "
                "which the recipe has not: restore it, or choose another folder."
            )
        if state["recipe"] != recipe_hash(self.recipe):
            self.say("the recipe has changed since the last checkpoint; going on with the new one")
        try:
            self.model.load_state_dict(_under(tensors, "model."))
            self.heads.load_state_dict(_under(tensors, "heads."))
        except RuntimeError as error:  # names or sizes differ, said in many lines
            raise self._unfit("its [base] or its classes were others", error) from error
        self.stage_index, self.step = names.index(state["stage"]), state["step"]
        self.restored = {k: v for k, v in tensors.items() if k.startswith("optimizer.")}
        if self.step >= self.recipe.stages[self.stage_index].steps:
            self.stage_index, self.step, self.restored = self.stage_index + 1, 0, {}

    def _unfit(self, why: str, error: Exception) -> RecipeError:
        what = str(error).strip().splitlines()[-1].strip()
        return RecipeError(
            f"The checkpoint in {self.out} does not fit the recipe, for {why} ({what}): restore the "
            "recipe, or choose another folder."
        )

    def _log(self, stage: Stage, **figures: Any) -> None:
        record = {"stage": stage.name, "step": self.step, "of": stage.steps, **figures}
        metrics = self.out / "metrics.jsonl"
        with writing(metrics), metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        shown = figures.get("held_out", figures)
        words = " ".join(f"{name}={value:.3f}" for name, value in shown.items())
        self.say(f"{stage.name} {self.step}/{stage.steps} {words}")


def _under(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
