"""`mmchat ask`: one question and its answer, streamed and kept in the history."""

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import click

from mmchat.cli.output import Progress, note, say, say_json
from mmchat.cli.question import (
    after_dashes,
    read_question,
    read_stdin,
    remark_on_pictures,
)
from mmchat.client import Delta, Done, EngineClient, Event, Loading, Options, Started, Waiting
from mmchat.errors import (
    AdapterError,
    EngineError,
    HistoryError,
    ImageError,
    ModelError,
    TooLongError,
)
from mmchat.history import Answer, Conversation, History, Message, Origin, StoredImage
from mmchat.images import MAX_BYTES, Picture, parse_picture, read_picture
from mmchat.sampling_params import LIMITS
from mmchat.sanitize import Cleaner
from mmchat.settings import GenerationSettings, Settings, load_settings
from mmchat.tui.turns import TOO_LONG, turns
from mmchat.turns import ImagePart, Turn, marks_without_picture


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
        asking = _Asking(settings, question, pictures, system)
        asked = asking.turns(history, found)
        if history is None or no_save:
            done, written = asking.run(asked, None, as_json)
            conversation_id = message_id = None
        else:
            answer = asking.keep(history, found)
            message_id = answer.id
            conversation_id = answer.begun.conversation_id
            try:
                done, written = asking.run(asked, answer, as_json)
            except (KeyboardInterrupt, BrokenPipeError):
                note(
                    f"Stopped; the part that was written is kept in conversation {conversation_id}."
                )
                raise
            except (ModelError, AdapterError):
                # --continue must not find a conversation that a misspelled name began.
                if found is None and not history.message(message_id).text:
                    history.delete(conversation_id)
                raise
    if as_json:
        say_json(
            {
                "text": written,
                "finish_reason": done.finish_reason,
                "conversation_id": conversation_id,
                "message_id": message_id,
                "model": done.model,
                "adapter": done.adapter,
                "usage": _part(
                    done, "prompt_tokens", "image_tokens", "completion_tokens", "cached_tokens"
                ),
                "timings": _part(done, "image_ms", "prefill_ms", "decode_ms", "tokens_per_second"),
            }
        )
    if done.finish_reason == "length":
        note(
            f"The answer was cut off after {done.completion_tokens} tokens: use a higher "
            "--max-tokens."
        )
    elif done.finish_reason == "cancelled":
        raise EngineError("The engine was stopped before the answer was complete.")


def _part(done: Done, *names: str) -> dict[str, Any]:
    return {name: getattr(done, name) for name in names}


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
class _Asking:
    """One question, with everything that belongs to it."""

    settings: Settings
    question: str
    pictures: Sequence[Picture]
    system: str

    def turns(
        self, history: History | None, conversation: Conversation | None
    ) -> list[Turn[ImagePart]]:
        """The turns for the engine: the conversation so far, then the question."""
        branch = history.branch(conversation.id) if history and conversation else []
        new = Message(
            id=0,
            conversation_id=0,
            parent_id=None,
            role="user",
            text=self.question,
            images=tuple(self._images()),
            created=time.time(),
            state="complete",
            error="",
            origin=None,
            sibling=1,
            siblings=1,
        )
        data = {one.sha256: one.data for one in self.pictures}

        def image_data(sha256: str) -> bytes:
            if sha256 not in data and history is not None:
                data[sha256] = history.image_data(sha256)
            return data[sha256]

        return turns([*branch, new], self.system, image_data)

    def keep(self, history: History, conversation: Conversation | None) -> Answer:
        """Stores the question before it is asked, and begins its answer."""
        if conversation is not None and conversation.system != self.system:
            history.set_system(conversation.id, self.system)
        _, answer = history.say(
            conversation.id if conversation else None,
            self.question,
            images=[
                (image, one.data) for image, one in zip(self._images(), self.pictures, strict=True)
            ],
            origin=self._origin(Done("stop")),
            system=self.system,
        )
        return answer

    def _images(self) -> list[StoredImage]:
        return [
            StoredImage(one.sha256, one.mime, one.width, one.height, len(one.data), one.name)
            for one in self.pictures
        ]

    def _origin(self, done: Done) -> Origin:
        generation, model = self.settings.generation, self.settings.model
        parameters = {name: getattr(generation, name) for name in _sampling()}
        if done.dropped_turns:
            parameters["dropped_turns"] = done.dropped_turns
        if done.context_length:
            parameters["context_length"] = done.context_length
        if not done.model:  # the engine was not asked yet
            return Origin(model=model.name, adapter=model.adapter, parameters=parameters)
        names = {field.name for field in fields(Origin)} & set(Done.__struct_fields__)
        return Origin(parameters=parameters, **{name: getattr(done, name) for name in names})

    def run(
        self, asked: Sequence[Turn[ImagePart]], answer: Answer | None, quiet: bool
    ) -> tuple[Done, str]:
        """Streams the answer to stdout (unless `quiet`) and into the history.

        If it ends early, the history keeps what was written until then.
        """
        view = _View(quiet, answer.append if answer else None)
        with answer or contextlib.nullcontext():
            try:
                done = asyncio.run(_stream(self.settings, asked, view))
            except BrokenPipeError:
                if answer:
                    answer.finish("stopped")
                raise
            except TooLongError as error:
                if answer:
                    origin = self._origin(Done("stop"))
                    answer.fail(str(error), replace(origin, parameters={TOO_LONG: True}))
                raise
            finally:
                view.end()
            if answer:
                answer.finish(_STATES[done.finish_reason], self._origin(done))
        return done, view.text


_STATES: dict[str, Literal["complete", "stopped", "length"]] = {
    "stop": "complete",
    "length": "length",
    "cancelled": "stopped",
}


def _sampling() -> list[str]:
    """The settings of [generation] that control how tokens are sampled."""
    names = GenerationSettings.__struct_fields__
    return [name for name in names if name in Options.__struct_fields__]


class _View:
    """Shows the events to the person."""

    def __init__(self, quiet: bool, keep: Callable[[str], None] | None) -> None:
        self.text = ""
        self._quiet = quiet
        self._keep = keep
        self._cleaner = Cleaner()
        self._progress = Progress()

    def take(self, event: Event) -> None:
        match event:
            case Waiting(place=place):
                self._progress.show(f"Waiting in line (place {place})")
            case Loading(model=model, stage=stage, fraction=fraction):
                self._progress.show(f"Loading {model}: {stage}", fraction)
            case Started(dropped_turns=dropped, context_length=length):
                self._progress.clear()
                if dropped:
                    note(
                        f"The {dropped} oldest messages were left out, because the conversation is "
                        f"longer than the model's {length} tokens."
                    )
            case Delta(text=text):
                if self._keep:
                    self._keep(text)
                self.text += text
                if not self._quiet:
                    say(self._cleaner.feed(text), end="")

    def end(self) -> None:
        self._progress.clear()
        if self.text and not self._quiet:
            with contextlib.suppress(BrokenPipeError):
                say(self._cleaner.rest(), end="" if self.text.endswith("\n") else "\n")


async def _stream(settings: Settings, asked: Sequence[Turn[ImagePart]], view: _View) -> Done:
    options = Options(**{name: getattr(settings.generation, name) for name in _sampling()})
    client = EngineClient(settings)
    try:
        async with contextlib.aclosing(client.chat(asked, options)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event
                view.take(event)
    finally:
        await client.aclose()
    raise EngineError("The engine ended the answer before it was complete: ask again.")
