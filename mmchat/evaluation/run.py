"""Asks every question of a folder through the engine, and counts the right answers."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import mmchat
from mmchat.client import Delta, Done, EngineClient, Options, Turn
from mmchat.errors import AdapterError, EngineError, ImageError, ModelError
from mmchat.evaluation.answers import Answers, Identity
from mmchat.evaluation.questions import Question, Questions, at_most, read_questions
from mmchat.evaluation.report import Report, Subject, report_type
from mmchat.settings import Settings

Progress = Callable[[str, float], None]
"""What goes on, and which part of it is done, from 0 to 1."""

OPTIONS = Options(max_tokens=96)
"""Greedy, and long enough for every answer that the data wants."""


def evaluate(
    data: Path,
    settings: Settings,
    *,
    model: str = "",
    adapter: str = "",
    limit: int = 0,
    progress: Progress = lambda text, fraction: None,
) -> Report:
    """Asks the questions of the folder `data` one after another.

    model, adapter: empty is the settings' choice. limit: at most so many
    questions of each type; 0 is all.

    Every answer is kept as it comes: what stops the evaluation (EngineError, an
    interrupt) does not lose them, and the next run asks only what is missing.
    Raises DataError, EngineError and SettingsError.
    """
    return asyncio.run(_evaluate(data, settings, model, adapter, limit, progress))


async def _evaluate(
    data: Path, settings: Settings, model: str, adapter: str, limit: int, progress: Progress
) -> Report:
    progress("Reading the questions", 0.0)
    asked = read_questions(data)
    questions = at_most(asked.questions, limit)
    async with contextlib.aclosing(EngineClient(settings)) as client:
        subject = await _subject(client, asked, model, adapter, progress)
        with Answers(_identity(subject)) as answers:
            found = dict(answers.known)
            new = [question for question in questions if question.id not in found]
            for number, question in enumerate(new):
                progress(f"Question {number + 1} of {len(new)}", number / len(new))
                try:
                    said = await _ask(client, asked.turns(question), subject)
                except (EngineError, ModelError, AdapterError, ImageError) as error:
                    kept = "; what was answered is kept, and the same command goes on from there"
                    raise EngineError(
                        f"The question {question.id} was not answered"
                        f"{kept if answers.lasting else ''}. {error}"
                    ) from error
                answers.add(question.id, said)
                found[question.id] = said
    by_type: dict[str, list[tuple[Question, str]]] = {}
    for question in questions:
        by_type.setdefault(question.type, []).append((question, found[question.id]))
    return Report(
        subject,
        tuple(report_type(name, pairs) for name, pairs in by_type.items()),
        len(questions) - len(new),
        str(answers.file),
    )


async def _ask(client: EngineClient, turns: Sequence[Turn], subject: Subject) -> str:
    said: list[str] = []
    async with contextlib.aclosing(client.chat(turns, OPTIONS)) as events:
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


async def _subject(
    client: EngineClient,
    asked: Questions,
    model: str,
    adapter: str,
    progress: Progress,
) -> Subject:
    """Loads the model, and says what it is."""
    async with contextlib.aclosing(client.load(model, adapter)) as steps:
        async for step in steps:
            progress(f"Loading {step.model}: {step.stage}", step.fraction)
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
        data=str(asked.folder),
        data_sha256=asked.sha256,
        about=asked.about,
    )


def _identity(subject: Subject) -> Identity:
    return Identity(
        data=subject.data_sha256,
        model=subject.model,
        weights=subject.weights_hash,
        adapter=subject.adapter,
        adapter_hash=subject.adapter_hash,
        quantization=subject.quantization,
        compute_dtype=subject.compute_dtype,
        device=subject.device,
        options=msgspec.json.encode(OPTIONS).decode(),
        version=mmchat.__version__,
    )
