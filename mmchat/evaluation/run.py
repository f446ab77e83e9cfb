"""Asks every question of some data through the engine, and counts the right answers."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

import mmchat
from mmchat.client import Delta, Done, EngineClient, Options, Turn
from mmchat.data.types import Dataset
from mmchat.errors import (
    AdapterError,
    DataError,
    EngineError,
    ImageError,
    ModelError,
    TooLongError,
)
from mmchat.evaluation.answers import Answers, Identity
from mmchat.evaluation.questions import Question, Questions, at_most
from mmchat.evaluation.reading import read
from mmchat.evaluation.report import Report, Subject, make_report
from mmchat.settings import Settings

Progress = Callable[[str, float], None]
"""What goes on, and which part of it is done, from 0 to 1."""

NONE = "none"
"""The adapter of that name is none: the bare base."""
PARALLEL = 3
"""Questions that are under way at once."""


def evaluate(
    data: Path | Dataset | Questions,
    settings: Settings,
    *,
    model: str = "",
    adapter: str = "",
    limit: int = 0,
    blank: bool = False,
    parallel: int = PARALLEL,
    progress: Progress = lambda text, fraction: None,
) -> Report:
    """Asks the questions of `data`: an evaluation folder, or data in any other form.

    model, adapter: empty is the settings' choice; the adapter "none" is the bare base. limit: at
    most so many questions of each type; 0 is all. blank: a control, which asks only what has
    pictures, and shows grey ones of the same size in their place. parallel: so many questions are
    under way at once; the local engine answers one after another, the next being ready.

    A question that the model has no room for, or whose picture it cannot read, counts as wrong, and
    its outcome says why.
    Every answer is kept as it comes: what stops the evaluation (EngineError, an
    interrupt) does not lose them, and the next run asks only what is missing.
    Raises DataError, EngineError and SettingsError.
    """
    if adapter == NONE:
        adapter = ""
        bare = msgspec.structs.replace(settings.model, adapter="")
        settings = msgspec.structs.replace(settings, model=bare)
    elif adapter and settings.engine.url:
        raise EngineError(
            "A remote server's adapter cannot be chosen from here: name a model of the server that "
            "has it (--model), or unset engine.url."
        )
    asking = _Asking(settings, model, adapter, blank, max(parallel, 1), progress)
    return asyncio.run(asking.report(data, limit))


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who is asked, and how."""

    settings: Settings
    model: str
    adapter: str
    blank: bool
    parallel: int
    progress: Progress

    async def report(self, data: Path | Dataset | Questions, limit: int) -> Report:
        self.progress("Reading the questions", 0.0)
        asked = read(data, adapters=[self.adapter or self.settings.model.adapter])
        questions = at_most([q for q in asked.questions if q.images or not self.blank], limit)
        if not questions:
            raise DataError(
                f"{asked.source} has no question about a picture: ask it without the control."
            )
        async with contextlib.aclosing(EngineClient(self.settings)) as client:
            subject = await self._subject(client, asked)
            with Answers(_identity(subject, asked)) as answers:
                found = dict(answers.known)
                new = [question for question in questions if question.id not in found]
                why = await self._ask_all(client, asked, new, subject, answers, found)
        pairs = [(question, found.get(question.id, "")) for question in questions]
        return make_report(subject, pairs, len(questions) - len(new), str(answers.file), why)

    async def _ask_all(
        self,
        client: EngineClient,
        asked: Questions,
        new: Sequence[Question],
        subject: Subject,
        answers: Answers,
        found: dict[str, str],
    ) -> dict[str, str]:
        """Puts every answer into `answers` and `found`; where one fails, the others end too.

        -> why a question cannot be answered, however often it is asked, by its id
        """
        unanswered: dict[str, str] = {}
        waiting, options = iter(new), _options(asked)
        done = 0

        def tell() -> None:
            if done < len(new):
                self.progress(f"Question {done + 1} of {len(new)}", done / len(new))

        async def ask_on() -> None:
            nonlocal done
            for question in waiting:  # of all who ask: each takes the next
                try:
                    turns = await asyncio.to_thread(asked.turns, question, self.blank)
                    said = await _ask(client, turns, options, subject)
                except (TooLongError, ImageError) as error:
                    unanswered[question.id] = str(error)
                except (EngineError, ModelError, AdapterError) as error:
                    kept = "; what was answered is kept, and the same command goes on from there"
                    raise EngineError(
                        f"The question {question.id} was not answered"
                        f"{kept if answers.lasting else ''}. {error}"
                    ) from error
                else:
                    answers.add(question.id, said)
                    found[question.id] = said
                done += 1
                tell()

        tell()
        tasks = [asyncio.create_task(ask_on()) for _ in range(min(self.parallel, len(new)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return unanswered

    async def _subject(self, client: EngineClient, asked: Questions) -> Subject:
        """Loads the model, and says what it is."""
        async with contextlib.aclosing(client.load(self.model, self.adapter)) as steps:
            async for step in steps:
                self.progress(f"Loading {step.model}: {step.stage}", step.fraction)
        status = await client.status()
        if status is None:
            raise EngineError("The engine ended after it had loaded the model: start again.")
        return Subject(
            model=status.model,
            weights_hash=status.weights_hash,
            adapter=status.adapter,
            adapter_hash=status.adapter_hash,
            quantization=status.quantization,
            compute_dtype=status.compute_dtype,
            device=status.device,
            data=asked.source,
            data_sha256=asked.sha256,
            about={**asked.about, "control": "grey pictures"} if self.blank else asked.about,
            blank=self.blank,
        )


def _options(asked: Questions) -> Options:
    return Options(max_tokens=asked.max_tokens)  # greedy


async def _ask(
    client: EngineClient, turns: Sequence[Turn], options: Options, subject: Subject
) -> str:
    said: list[str] = []
    async with contextlib.aclosing(client.chat(turns, options)) as events:
        async for event in events:
            if isinstance(event, Delta):
                said.append(event.text)
            elif isinstance(event, Done) and event.finish_reason != "cancelled":
                _check_answerer(event, subject)
                return "".join(said)
    raise EngineError("The engine was stopped in mid-answer.")


def _check_answerer(done: Done, subject: Subject) -> None:
    """Raises EngineError where another model answered than the one that was loaded for this."""
    if not subject.quantization:  # another server: it tells no such thing
        return
    other = (done.model, done.adapter, done.quantization) != (
        subject.model,
        subject.adapter,
        subject.quantization,
    )
    if other or (subject.adapter_hash and done.adapter_hash != subject.adapter_hash):
        raise EngineError(
            "The engine's model or adapter is not the one that was loaded for the evaluation: "
            "leave it alone meanwhile."
        )


def _identity(subject: Subject, asked: Questions) -> Identity:
    return Identity(
        data=f"{asked.key} grey" if subject.blank else asked.key,
        model=subject.model,
        weights=subject.weights_hash,
        adapter=subject.adapter,
        adapter_hash=subject.adapter_hash,
        quantization=subject.quantization,
        compute_dtype=subject.compute_dtype,
        device=subject.device,
        options=msgspec.json.encode(_options(asked)).decode(),
        version=mmchat.__version__,
    )
