"""Runs an evaluation: asks the questions of some data through the engine and grades the answers.

Every answer is written to a cache file at once, so that a stopped evaluation can continue. There is
one file per combination of data, weights, adapter, quantization and device: an answer is reused only if
the model would give it again.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

import mmchat
from mmchat.client import Delta, Done, EngineClient, Options
from mmchat.data.types import Dataset
from mmchat.errors import AdapterError, DataError, EngineError, ImageError, ModelError, TooLongError
from mmchat.evaluation.graders import Grader, find_grader
from mmchat.evaluation.question_sets import load_questions
from mmchat.evaluation.questions import Question, QuestionSet, limit_per_type
from mmchat.evaluation.results import EvaluationResult, EvaluationSetup, make_result
from mmchat.settings import NO_ADAPTER, Settings, paths, private_dir
from mmchat.turns import ImagePart, Turn

ProgressCallback = Callable[[str, float], None]
"""Called with what is being done and the fraction of it that is done, from 0 to 1."""

PARALLEL = 3


def evaluate(
    data: Path | Dataset | QuestionSet,
    settings: Settings,
    *,
    model: str = "",
    adapter: str = "",
    limit: int = 0,
    blank: bool = False,
    parallel: int = PARALLEL,
    progress: ProgressCallback = lambda text, fraction: None,
) -> EvaluationResult:
    """Asks the questions of `data` and grades the answers.

    model, adapter: "" is the settings' choice; the adapter "none" is the base without one. limit:
    ask at most this many questions of each type, 0 for all. blank: a control that asks only the
    questions with pictures, and sends grey pictures of the same size instead. parallel: how many
    questions to send at a time; the local engine answers one by one and prepares the next.

    A question that is too long for the model, or whose picture the model cannot read, counts as
    wrong, and its answer says why. If the evaluation stops (EngineError, an interrupt), the answers so
    far are kept, and the next run asks only the rest. Raises DataError, EngineError and SettingsError.
    """
    if adapter == NO_ADAPTER:
        adapter = ""
        base = msgspec.structs.replace(settings.model, adapter="")
        settings = msgspec.structs.replace(settings, model=base)
    elif adapter and settings.engine.url:
        raise EngineError(
            "The adapter of a remote server cannot be chosen here: choose a model of the server that "
            "has it (--model), or unset engine.url."
        )
    runner = _Runner(settings, model, adapter, blank, max(parallel, 1), progress)
    return asyncio.run(runner.run(data, limit))


@dataclass(frozen=True, slots=True)
class _Runner:
    settings: Settings
    model: str
    adapter: str
    blank: bool
    parallel: int
    progress: ProgressCallback

    async def run(self, data: Path | Dataset | QuestionSet, limit: int) -> EvaluationResult:
        self.progress("Reading the questions", 0.0)
        adapter = self.adapter or self.settings.model.adapter
        data_questions = load_questions(data, adapters=[adapter])
        grader = _named_grader(data_questions)
        usable = [q for q in data_questions.questions if q.images or not self.blank]
        questions = limit_per_type(usable, limit)
        if not questions:
            raise DataError(
                f"{data_questions.source} has no question about a picture: omit --blank."
            )
        async with contextlib.aclosing(EngineClient(self.settings)) as client:
            setup = await self._load(client, data_questions)
            with contextlib.closing(AnswerCache(setup, data_questions)) as cache:
                answers = dict(cache.answers)
                new = [question for question in questions if question.id not in answers]
                errors = await self._ask_all(client, data_questions, new, setup, cache, answers)
        return make_result(
            setup,
            [(question, answers.get(question.id, "")) for question in questions],
            grader=grader or find_grader(setup.model),
            errors=errors,
            reused=len(questions) - len(new),
            answers_file=str(cache.file),
        )

    async def _load(self, client: EngineClient, questions: QuestionSet) -> EvaluationSetup:
        async with contextlib.aclosing(client.load(self.model, self.adapter)) as steps:
            async for step in steps:
                self.progress(f"Loading {step.model}: {step.stage}", step.fraction)
        status = await client.status()
        if status is None:
            raise EngineError("The engine stopped after loading the model: run the command again.")
        about = questions.about
        return EvaluationSetup(
            model=status.model,
            weights_hash=status.weights_hash,
            adapter=status.adapter,
            adapter_hash=status.adapter_hash,
            quantization=status.quantization,
            compute_dtype=status.compute_dtype,
            device=status.device,
            data=questions.source,
            data_sha256=questions.sha256,
            about={**about, "control": "grey pictures"} if self.blank else about,
            blank=self.blank,
        )

    async def _ask_all(
        self,
        client: EngineClient,
        questions: QuestionSet,
        new: Sequence[Question],
        setup: EvaluationSetup,
        cache: "AnswerCache",
        answers: dict[str, str],
    ) -> dict[str, str]:
        """Adds every answer to `cache` and `answers`. If one fails, the others are cancelled.

        -> why a question cannot be answered at all, by its id
        """
        errors: dict[str, str] = {}
        waiting, options = iter(new), _options(questions)
        done = 0

        def show_progress() -> None:
            if done < len(new):
                self.progress(f"Question {done + 1} of {len(new)}", done / len(new))

        async def worker() -> None:
            nonlocal done
            for question in waiting:  # one iterator for all workers: each takes the next question
                try:
                    turns = await asyncio.to_thread(questions.turns, question, self.blank)
                    answer = await _ask(client, turns, options, setup)
                except (TooLongError, ImageError) as error:
                    errors[question.id] = str(error)
                except (EngineError, ModelError, AdapterError) as error:
                    kept = " The answers so far are kept: run the same command again to continue."
                    raise EngineError(
                        f"The question {question.id} was not answered. {error}"
                        f"{kept if cache.is_reusable else ''}"
                    ) from error
                else:
                    cache.add(question.id, answer)
                    answers[question.id] = answer
                done += 1
                show_progress()

        show_progress()
        tasks = [asyncio.create_task(worker()) for _ in range(min(self.parallel, len(new)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return errors


def _named_grader(questions: QuestionSet) -> Grader | None:
    """The grader that the data names, if any. Raises DataError if mmchat does not have it."""
    if not questions.grader:
        return None
    grader = find_grader(questions.grader)
    if grader is None:
        raise DataError(
            f"{questions.source} names the grader {questions.grader!r} in its data.json, which this "
            "version of mmchat does not have: remove the name to compare the answers as text."
        )
    return grader


def _options(questions: QuestionSet) -> Options:
    return Options(max_tokens=questions.max_tokens)  # greedy


async def _ask(
    client: EngineClient, turns: Sequence[Turn[ImagePart]], options: Options, setup: EvaluationSetup
) -> str:
    texts: list[str] = []
    async with contextlib.aclosing(client.chat(turns, options)) as events:
        async for event in events:
            if isinstance(event, Delta):
                texts.append(event.text)
            elif isinstance(event, Done) and event.finish_reason != "cancelled":
                _check_model(event, setup)
                return "".join(texts)
    raise EngineError("The engine stopped in the middle of an answer: run the command again.")


def _check_model(done: Done, setup: EvaluationSetup) -> None:
    """Raises EngineError if the answer is not from the model that was loaded."""
    if not setup.quantization:  # another server, which does not report it
        return
    answered = (done.model, done.adapter, done.quantization)
    loaded = (setup.model, setup.adapter, setup.quantization)
    if answered != loaded or (setup.adapter_hash and done.adapter_hash != setup.adapter_hash):
        raise EngineError(
            "The engine's model or adapter changed during the evaluation: run it again, and do not "
            "switch models until it ends."
        )


class _CachedAnswer(Struct, frozen=True):
    id: str
    """The question's id."""
    answer: str


class AnswerCache:
    """A file of answers, open for appending. `add` returns when the answer has been written.

    The folder's name is a hash of everything that an answer depends on. Raises DataError if the file
    cannot be read or written.
    """

    def __init__(self, setup: EvaluationSetup, questions: QuestionSet) -> None:
        key = {
            "data": f"{questions.key} grey" if setup.blank else questions.key,
            "model": setup.model,
            "weights": setup.weights_hash,
            "adapter": setup.adapter,
            "adapter_hash": setup.adapter_hash,
            "quantization": setup.quantization,
            "compute_dtype": setup.compute_dtype,
            "device": setup.device,
            "options": msgspec.json.encode(_options(questions)).decode(),
            "version": mmchat.__version__,
        }
        digest = hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:32]
        self.file = private_dir(paths().cache / "evaluation" / digest) / "answers.jsonl"
        # Another server may not say which weights and which adapter it has.
        known = setup.weights_hash and (setup.adapter_hash or not setup.adapter)
        self.is_reusable = bool(known)
        """Whether later runs can reuse the answers."""
        self.answers: dict[str, str] = {}
        """The answers of earlier runs, by question id."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | (0 if known else os.O_TRUNC)
        try:
            self._stream = os.fdopen(os.open(self.file, flags, 0o600), "r+b", buffering=0)
            raw = self._stream.readall()
            if raw and not raw.endswith(b"\n"):  # an earlier run was killed in the middle of a line
                self._stream.write(b"\n")
        except OSError as error:
            raise self._error(error) from error
        for line in raw.split(b"\n"):
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                cached = msgspec.json.decode(line, type=_CachedAnswer)
                self.answers[cached.id] = cached.answer

    def add(self, id_: str, answer: str) -> None:
        try:
            self._stream.write(msgspec.json.encode(_CachedAnswer(id_, answer)) + b"\n")
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        self._stream.close()

    def _error(self, error: OSError) -> DataError:
        return DataError(
            f"The answers cannot be written to {self.file} ({error.strerror}): free some space or "
            "make the file writable."
        )
