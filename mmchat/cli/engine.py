"""`mmchat engine`: starts, stops and shows the process that runs the model."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import click

from mmchat.cli.output import Progress, json_object_option, say, say_json, say_table
from mmchat.client import EngineClient, EngineStatus
from mmchat.display.numbers import format_percent, format_size
from mmchat.errors import EngineError
from mmchat.settings import Settings, load_settings


@click.group()
def engine() -> None:
    """Start, stop and show the process that runs the model.

    The app and `ask` start it when they need it, and it stops when it has been idle for a while.

    \b
    Example:
      mmchat engine status
    """


@engine.command()
@json_object_option
def start(as_json: bool) -> None:
    """Start the engine and load the model of the settings.

    An engine that is running already is kept.

    \b
    Example:
      mmchat engine start
    """
    _show(asyncio.run(_start_and_load(load_settings())), as_json)


async def _start_and_load(settings: Settings) -> EngineStatus | None:
    client = EngineClient(settings)
    progress = Progress()
    try:
        progress.show("Starting the engine")
        await client.start()
        async with contextlib.aclosing(client.load()) as steps:
            async for step in steps:
                progress.show(f"Loading {step.model}: {step.stage}", step.fraction)
        return await client.status()
    finally:
        progress.clear()
        await client.aclose()


@engine.command()
def stop() -> None:
    """Stop the engine; an unfinished answer keeps its text so far.

    \b
    Example:
      mmchat engine stop
    """

    async def stop_engine() -> bool:
        client = EngineClient(load_settings())
        try:
            return await client.stop()
        finally:
            await client.aclose()

    say("The engine has stopped." if asyncio.run(stop_engine()) else "No engine is running.")


@engine.command()
@json_object_option
def status(as_json: bool) -> None:
    """Show what the engine has loaded; does not start it.

    \b
    Example:
      mmchat engine status --json
    """
    _show(asyncio.run(engine_status(load_settings())), as_json)


async def engine_status(settings: Settings) -> EngineStatus | None:
    """The status of the engine; None if it is not running."""
    client = EngineClient(settings)
    try:
        return await client.status()
    finally:
        await client.aclose()


@engine.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    metavar="P",
    help="Listen on this TCP port, too, for other clients; 0 means any free port.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="H",
    help="The address to listen on; 0.0.0.0 means all networks.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="F",
    help="The file with the token that clients need; created if it does not exist.",
)
@click.pass_context
def serve(context: click.Context, port: int | None, host: str, token_file: Path | None) -> None:
    """Run the engine in this terminal until Ctrl-C.

    Its log is shown on the screen.

    With --port, clients of OpenAI's protocol can use it: the base URL is http://HOST:PORT/v1, and
    the API key is the content of the token file (docs/server.md).

    \b
    Examples:
      mmchat engine serve
      mmchat engine serve --port 8123 --token-file ~/mmchat-token
    """
    from mmchat.client.endpoint import ALREADY_RUNNING
    from mmchat.engine.__main__ import main as engine_main

    arguments = ["--foreground", "--host", host]
    if port is not None:
        arguments += ["--port", str(port)]
        if token_file is not None:
            arguments += ["--token-file", str(token_file.expanduser())]
    else:
        for name in ("host", "token_file"):
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} needs --port.")
    exit_status = engine_main(arguments)
    if exit_status == ALREADY_RUNNING:
        raise EngineError("An engine is already running: stop it with `mmchat engine stop` first.")
    context.exit(exit_status)


def _show(found: EngineStatus | None, as_json: bool) -> None:
    if as_json:
        say_json(as_object(found))
    elif found is None:
        say("No engine is running.")
    else:
        say_table(as_rows(found))


def as_object(found: EngineStatus | None) -> dict[str, Any]:
    """The status for `--json`; empty if no engine is running."""
    names = (
        "pid",
        "model",
        "adapter",
        "device",
        "quantization",
        "memory_bytes",
        "idle_s",
        "state",
        "version",
    )
    return {} if found is None else {name: getattr(found, name) for name in names}


def as_rows(found: EngineStatus) -> list[tuple[str, str]]:
    """The status as rows of a table."""
    state = {
        "empty": "running, no model loaded",
        "loading": f"loading: {found.stage} {format_percent(found.fraction)}",
        "ready": "ready",
        "failed": f"failed: {found.error}",
    }[found.state]
    rows = [("engine", state)]
    if found.model:
        rows += [
            ("model", found.model),
            ("adapter", found.adapter or "none"),
            (
                "loaded as",
                f"{found.quantization}, computes in {found.compute_dtype}, {found.device}",
            ),
            ("context", f"{found.context_length:,} tokens"),
        ]
    if found.pid:
        rows += [
            ("process", str(found.pid)),
            ("memory", format_size(found.memory_bytes)),
            ("idle", f"{found.idle_s:.0f} s"),
            ("log", found.log_file),
        ]
    if found.url:
        rows.append(("address", found.url))
    return rows
