"""What every command has in common: help, wrong usage, and what is not an error."""

import subprocess
import sys
from pathlib import Path

import pytest
from click import Command, Context, Group

import mmchat as package
from mmchat.cli.root import root
from tests.cli.conftest import MMCHAT, Run, every_command, sentence

COMMANDS = every_command(root, "mmchat")
PROMISED = """
    mmchat, ask, history list, history show, history search, history delete, models list,
    models show, models add, models remove, adapters list, adapters show, adapters use,
    adapters rename, adapters remove, adapters merge, adapters export, adapters import, train,
    data inspect,
    evaluate, engine start, engine stop, engine status, engine serve, doctor
"""


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(c[0]) for c in COMMANDS])
def test_every_command_has_help_with_an_example(path: tuple[str, ...], command: Command) -> None:
    shown = command.get_help(Context(command, info_name=" ".join(path)))
    assert "Example" in shown
    assert " ".join(path) in shown.partition("Example")[2]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(c[0]) for c in COMMANDS])
def test_no_command_is_cut_off_in_a_list_of_commands(
    path: tuple[str, ...], command: Command
) -> None:
    if isinstance(command, Group):
        shown = command.get_help(Context(command, info_name=" ".join(path), terminal_width=80))
        assert "..." not in shown.partition("Commands:")[2]


def test_every_promised_command_is_there() -> None:
    found = {" ".join(path).removeprefix("mmchat ") for path, _ in COMMANDS}
    assert {name.strip() for name in PROMISED.split(",")} <= found


def test_whatever_prints_data_prints_json_too() -> None:
    without = {"history delete", "models add", "models remove", "adapters use"}
    without |= {"adapters rename", "adapters remove", "engine stop", "engine serve", "train"}
    for path, command in COMMANDS:
        name = " ".join(path[1:])
        options = {option for one in command.params for option in one.opts}
        if not hasattr(command, "commands") and name not in without:
            assert "--json" in options, name


def test_version_and_help(mmchat: Run) -> None:
    assert mmchat("--version").stdout == f"mmchat {package.__version__}\n"
    assert "Usage: mmchat" in mmchat("--help").stdout
    assert "Usage: mmchat ask" in mmchat("ask", "-h").stdout


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmchat", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"mmchat {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["histroy"], "Did you mean history?"),
        (["xyzzy"], "To ask something: mmchat ask"),
        (["ask", "x", "--seed", "many"], "--seed"),
        (["ask", "x", "--temperature", "-1"], "--temperature"),
        (["ask", "x", "--max-tokens", "0"], "--max-tokens"),
        (["ask", "x", "--nonsense"], "--nonsense"),
        (["ask", "x", "--continue", "--conversation", "1"], "not both"),
        (["ask", "x", "-a", "-", "-a", "-"], "Only one picture"),
        (["ask", "-a", "-"], "give the text as an argument"),
        (["ask"], "empty"),
        (["ask", "  "], "empty"),
        (["--new", "--conversation", "1"], "not both"),
        (["--new", "history", "list"], "open the app"),
        (["history", "show", "first"], "first"),
        (["history", "list", "--limit", "0"], "--limit"),
        (["history", "delete", "one"], "one"),
        (["train", "x", "--recipe", "r", "--set", "seed"], "KEY=VALUE"),
        (["models", "remove", "x"], "--yes"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_sentence(mmchat: Run, arguments: list[str], said: str) -> None:
    done = mmchat(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mmchat: ") and done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_group_alone_shows_its_help(mmchat: Run) -> None:
    done = mmchat("history")
    assert done.returncode == 2
    assert "search" in done.stderr and done.stdout == ""


def test_the_app_without_a_terminal_says_what_to_do_instead(mmchat: Run) -> None:
    assert "mmchat ask" in sentence(mmchat())


def test_settings_that_are_wrong_are_one_sentence(mmchat: Run, home: object) -> None:
    assert "temperatur" in sentence(mmchat("ask", "x", MMCHAT_GENERATION_TEMPERATURE="hot"))
    from mmchat.settings import paths

    paths().settings_file.write_text("[modle]\nname = 'x'\n", encoding="utf-8")
    assert "Did you mean model?" in sentence(mmchat("ask", "x"))


def test_a_home_that_cannot_be_written_is_one_sentence(mmchat: Run) -> None:
    assert "/dev/null" in sentence(mmchat("history", "list", MMCHAT_HOME="/dev/null/home"))
    assert "/dev/null" in sentence(mmchat("ask", "hello", MMCHAT_HOME="/dev/null/home"))


def test_a_full_output_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [MMCHAT, "history", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert "cannot be written" in sentence(done)


def test_a_terminal_of_few_characters_gets_question_marks(mmchat: Run) -> None:
    from mmchat.history import History

    with History.open() as history:
        conversation = history.new_conversation()
        history.add_message(conversation.id, "user", "漢字 café")
    done = mmchat("history", "list", PYTHONIOENCODING="cp1251")
    assert done.returncode == 0
    assert "?? caf?" in done.stdout
