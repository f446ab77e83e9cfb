"""`mmchat ask`: one question and its answer, streamed and kept in the history."""

import asyncio
import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from mmchat.chat.answer_queue import AnswerQueue
from mmchat.chat.async_history import AsyncHistory
from mmchat.chat.events import (
    AnswerChanged,
    AnswerDelta,
    AnswerFinished,
    ChatEvent,
    LoadFinished,
    LoadProgress,
    PendingAnswer,
)
from mmchat.chat.service import ConversationService
from mmchat.chat.unsaved import unsaved_answer
from mmchat.cli.output import Progress, note, say, say_json
from mmchat.cli.question import (
    after_dashes,
    read_question,
    read_stdin,
    remark_on_pictures,
)
from mmchat.errors import AdapterError, EngineError, HistoryError, ImageError, ModelError
from mmchat.history import Conversation, History, Origin
from mmchat.images import MAX_BYTES, Picture, parse_picture, read_picture
from mmchat.sampling_params import LIMITS
from mmchat.sanitize import Cleaner
from mmchat.settings import Settings, load_settings
from mmchat.turns import marks_without_picture


def _checked_seed(context: click.Context, option: click.Parameter, value: int | None) -> int | None:
    low, high = LIMITS["seed"][:2]
    if value is not None and not low <= value <= high:
        raise click.BadParameter("a seed is a whole number from 0 to 2^63 - 1", context, option)
    return value


def _int_range(name: str) -> click.IntRange:
    limit = LIMITS[name]
    return click.IntRange(int(limit.low), int(limit.high))


@click.command()
@click.argument("text", required=False)
@click.option(
    "-a",
    "--attach",
    "attachments",
    multiple=True,
    metavar="PICTURE",
    help="A picture file, or - for stdin. [1] in the text marks the place of the first one.",
)
@click.option("--continue", "go_on", is_flag=True, help="Continue the last conversation.")
@click.option("--conversation", type=int, metavar="ID", help="Continue this conversation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--model", metavar="M", help="The model that answers.")
@click.option("--adapter", metavar="NAME", help="The adapter it answers with; none for no adapter.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option(
    "--temperature",
    type=click.FloatRange(*LIMITS["temperature"][:2]),
    metavar="T",
    help="0 always takes the most likely token.",
)
@click.option(
    "--max-tokens",
    type=_int_range("max_tokens"),
    metavar="N",
    help="The most tokens of an answer.",
)
@click.option(
    "--seed",
    type=int,
    callback=_checked_seed,
    metavar="N",
    help="The same seed gives the same answer.",
)
@click.option("--no-save", is_flag=True, help="Do not keep it in the history.")
def ask(
    text: str | None,
    attachments: tuple[str, ...],
    go_on: bool,
    conversation: int | None,
    as_json: bool,
    no_save: bool,
    system: str | None,
    model: str | None,
    adapter: str | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
) -> None:
    """Ask a question, with or without pictures.

    Without TEXT, the text comes from stdin; text that is piped in beside TEXT goes before it.
    The answer is printed as it is written, and kept in the history.

    \b
    Examples:
      mmchat ask "what is this?" -a barn.jpg
      mmchat ask "is [1] older than [2]?" -a left.png -a right.png
      mmchat ask --continue "and what colour is it?"
      git diff | mmchat ask "what changed here?" --json
      mmchat ask -a barn.jpg -- "- is it old?"
      curl -s $URL | mmchat ask "what is this?" -a -
    """
    if go_on and conversation is not None:
        raise click.UsageError("Give --continue or --conversation, not both.")
    context = click.get_current_context()
    for name in attachments:  # `mmchat ask "-a cat is here"`
        if name[:1].isspace() and not os.path.lexists(name):
            raise click.UsageError(
                f"-a took {name!r} for a picture. {after_dashes(context.command_path, f'-a{name}')}"
            )
    if attachments.count("-") > 1:
        raise click.UsageError("Only one picture can come from stdin.")
    question = read_question(text, picture_on_stdin="-" in attachments)
    remark_on_pictures(question if text is None else text, attachments)
    sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    flags = _given({f"generation.{name}": value for name, value in sampling.items()})
    settings = load_settings({**_chosen_model(model, adapter), **flags})
    pictures = [_picture(name) for name in attachments]
    for remark in filter(None, (picture.remark for picture in pictures)):
        note(remark)
    if pictures and (lost := marks_without_picture(question, len(pictures))):
        note(f"There is no picture {lost[0]}, so [{lost[0]}] is sent as text.")
    with contextlib.ExitStack() as stack:
        history: History | None = None
        found: Conversation | None = None
        if not no_save or go_on or conversation is not None:
            history = stack.enter_context(History.open())
            found = _conversation(history, go_on, conversation)
        if system is None:
            system = found.system if found else settings.generation.system
        request = _Request(settings, question, pictures, system, history, found, not no_save)
        answer = _answer(request, quiet=as_json)
    if as_json:
        say_json(_result(answer, saved=not no_save))
    if answer.final_state == "length":
        note(
            f"The answer was cut off after {answer.origin.completion_tokens} tokens: use a higher "
            "--max-tokens."
        )
    elif answer.final_state == "stopped":
        raise EngineError("The engine was stopped before the answer was complete.")


_FINISH_REASONS = {"complete": "stop", "length": "length", "stopped": "cancelled"}


def _result(answer: PendingAnswer, saved: bool) -> dict[str, Any]:
    """What --json prints."""
    origin = answer.origin
    return {
        "text": answer.text,
        "finish_reason": _FINISH_REASONS[answer.final_state or "complete"],
        "conversation_id": answer.conversation_id if saved else None,
        "message_id": answer.id if saved else None,
        "model": origin.model,
        "adapter": origin.adapter,
        "usage": _figures(
            origin, "prompt_tokens", "image_tokens", "completion_tokens", "cached_tokens"
        ),
        "timings": _figures(origin, "image_ms", "prefill_ms", "decode_ms", "tokens_per_second"),
    }


def _figures(origin: Origin, *names: str) -> dict[str, Any]:
    return {name: getattr(origin, name) for name in names}


def _picture(name: str) -> Picture:
    if name == "-":
        return parse_picture(read_stdin(MAX_BYTES + 1), "the picture on stdin")
    if name.lower().startswith(("http://", "https://")):
        raise ImageError(
            f"{name} is an address, and pictures are not fetched from the web: "
            f"curl -sL {shlex.quote(name)} | mmchat ask TEXT -a -"
        )
    return read_picture(name)


def _chosen_model(model: str | None, adapter: str | None) -> dict[str, str]:
    """--model and --adapter under the names of the settings."""
    if model is not None and adapter is None and model != load_settings().model.name:
        adapter = ""  # the settings' adapter belongs to the settings' model
    return _given({"model.name": model, "model.adapter": adapter})


def _given(flags: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in flags.items() if value is not None}


def _conversation(history: History, go_on: bool, wanted: int | None) -> Conversation | None:
    if wanted is not None:
        return history.conversation(wanted)
    if not go_on:
        return None
    latest = history.latest()
    if latest is None:
        raise HistoryError("There is no conversation to continue yet: leave --continue out.")
    return latest


@dataclass(frozen=True, slots=True)
class _Request:
    """A question, and the conversation that it continues."""

    settings: Settings
    question: str
    pictures: Sequence[Picture]
    system: str
    history: History | None
    """None if nothing is read from it or written to it."""
    conversation: Conversation | None
    save: bool

    async def submit(self, answers: AnswerQueue) -> PendingAnswer:
        """Puts the question into the queue; first it is stored, if `save`."""
        if self.history is None or not self.save:
            answer = unsaved_answer(
                self.settings,
                self.question,
                self.pictures,
                self.system,
                self.history,
                self.conversation,
            )
            answers.submit(answer)
            return answer
        service = ConversationService(AsyncHistory(self.history), answers, lambda event: None)
        branch = await service.open(self.conversation.id) if self.conversation else []
        if service.system != self.system:
            await service.set_system(self.system)
        _, message = await service.send(
            self.question, self.pictures, after=branch[-1] if branch else None
        )
        return answers.pending[message.id]

    def discard(self, answer: PendingAnswer) -> None:
        """Deletes a conversation that a misspelled name began: --continue must not find it."""
        if self.history is not None and self.save and self.conversation is None:
            self.history.delete(answer.conversation_id)


def _answer(request: _Request, quiet: bool) -> PendingAnswer:
    """Asks, and prints the answer as it is written, unless `quiet`. Raises why it failed."""
    view = _AnswerView(quiet)
    try:
        asyncio.run(_ask(request, view))
    except (KeyboardInterrupt, BrokenPipeError):
        if view.answer is not None and request.save:
            note(
                "Stopped; the part that was written is kept in conversation "
                f"{view.answer.conversation_id}."
            )
        raise
    answer = view.answer
    assert answer is not None
    if answer.final_state == "failed":
        if isinstance(answer.error, ModelError | AdapterError) and not answer.text:
            request.discard(answer)
        raise answer.error or EngineError(answer.error_text)
    return answer


async def _ask(request: _Request, view: "_AnswerView") -> None:
    """Asks until the answer is over; cancelled, it stops the answer and keeps its text."""
    events: asyncio.Queue[ChatEvent] = asyncio.Queue()
    answers = AnswerQueue(request.settings, events.put_nowait)
    worker = asyncio.create_task(answers.run())
    try:
        view.answer = await request.submit(answers)
        while not view.finished:
            view.show(await events.get())
    finally:
        view.end()
        await answers.close()
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker


@dataclass(slots=True)
class _AnswerView:
    """Prints the events of one answer."""

    quiet: bool
    answer: PendingAnswer | None = None
    finished: bool = False
    _last: str = ""
    """The last piece that was printed."""
    _cleaner: Cleaner = field(default_factory=Cleaner)
    _progress: Progress = field(default_factory=Progress)

    def show(self, event: ChatEvent) -> None:
        """Raises HistoryError if the answer could not be saved."""
        match event:
            case AnswerChanged(answer=answer):
                self._show_phase(answer)
            case LoadProgress(model=model, stage=stage, fraction=fraction):
                self._progress.show(f"Loading {model}: {stage}", fraction)
            case LoadFinished():
                self._progress.clear()
            case AnswerDelta(text=text):
                if not self.quiet:
                    self._last = text
                    say(self._cleaner.feed(text), end="")
            case AnswerFinished(error=error):
                self.finished = True
                if error:
                    raise HistoryError(error)

    def _show_phase(self, answer: PendingAnswer) -> None:
        if answer.save_error:
            raise HistoryError(answer.save_error)
        if answer.phase == "waiting" and answer.queue_position:
            self._progress.show(f"Waiting in line (place {answer.queue_position})")
        elif answer.phase == "reading":
            self._progress.clear()
            dropped = answer.origin.parameters.get("dropped_turns")
            if dropped:
                length = answer.origin.parameters.get("context_length")
                note(
                    f"The {dropped} oldest messages were left out, because the conversation is "
                    f"longer than the model's {length} tokens."
                )

    def end(self) -> None:
        """Ends the line of the answer."""
        self._progress.clear()
        if self._last:
            with contextlib.suppress(BrokenPipeError):
                say(self._cleaner.rest(), end="" if self._last.endswith("\n") else "\n")
