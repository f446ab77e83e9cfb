"""The root command, and the one place where errors become an exit status.

0    done
1    something that the user can fix: one sentence on stderr, `mmchat: …`
2    wrong usage
130  interrupted
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

import click

import mmchat
from mmchat.cli.output import complain
from mmchat.errors import MmchatError

COMMANDS = {
    "ask": "mmchat.cli.ask:ask",
    "history": "mmchat.cli.history:history",
    "models": "mmchat.cli.models:models",
    "adapters": "mmchat.cli.adapters:adapters",
    "data": "mmchat.cli.data:data",
    "train": "mmchat.cli.train:train",
    "evaluate": "mmchat.cli.evaluate:evaluate",
    "engine": "mmchat.cli.engine:engine",
    "doctor": "mmchat.cli.doctor:doctor",
}


class LazyGroup(click.Group):
    """A group that imports only the command that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module, _, attribute = COMMANDS.get(cmd_name, "").partition(":")
        if not module:
            return None
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = (
                f"Did you mean {near[0]}?"
                if near
                else 'To ask something: mmchat ask "what is this?" -a picture.png'
            )
            raise click.UsageError(f"There is no command {args[0]!r}. {hint}", ctx=ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(mmchat.__version__, prog_name="mmchat", message="%(prog)s %(version)s")
@click.option("--new", is_flag=True, help="Begin a new conversation.")
@click.option("--conversation", type=int, metavar="ID", help="Open this conversation.")
@click.pass_context
def root(context: click.Context, new: bool, conversation: int | None) -> None:
    """Chat about pictures with a model on this machine.

    Without a command, the app opens with the last conversation.

    \b
    Examples:
      mmchat
      mmchat --new
      mmchat ask "what is this?" -a barn.jpg
    """
    if context.invoked_subcommand is not None:
        if new or conversation is not None:
            raise click.UsageError(
                "--new and --conversation open the app, so they take no command."
            )
        return
    if new and conversation is not None:
        raise click.UsageError("Give --new or --conversation, not both.")
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        complain("The app needs a terminal. In pipes and scripts, use: mmchat ask TEXT -a PICTURE")
        context.exit(1)
    from mmchat import tui
    from mmchat.settings import load_settings

    tui.run(load_settings(), conversation=conversation, new=new)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    try:
        status = root.main(list(arguments), prog_name="mmchat", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "mmchat"
        sentence = _text_as_option(error, arguments) or _sentence(error.format_message())
        complain(f"{sentence} See: {path} --help")
        return 2
    except click.ClickException as error:
        complain(error.format_message())
        return 1
    except click.Abort:
        return 130
    except MmchatError as error:
        complain(str(error))
        return 1


def _text_as_option(error: click.UsageError, arguments: Sequence[str]) -> str:
    """The sentence for a text that begins with `-` and was parsed as an option; else empty."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return ""
    from mmchat.cli.question import after_dashes, looks_like_text

    text = next((one for one in arguments if looks_like_text(one)), None)
    asks = error.ctx.parent is None
    takes_text = any(isinstance(one, click.Argument) for one in error.ctx.command.params)
    if text is None or not (asks or takes_text):
        return ""
    command = "mmchat ask" if asks else error.ctx.command_path
    return f"{text!r} is not an option. {after_dashes(command, text)}"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else f"{text}."
