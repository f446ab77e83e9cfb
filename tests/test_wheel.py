"""The wheel in an environment of its own, away from the repository."""

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_hygiene import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mmchat` from the wheel. The libraries are this environment's: a path entry, after the
    wheel's own folder, whose .pth files (the checkout's among them) are not read."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT],
        check=True,
    )
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", next(folder.glob("*.whl"))], check=True
    )
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return environment / "bin" / "mmchat"


@pytest.fixture
def person(tmp_path: Path) -> dict[str, str]:
    """The environment of a person whose home is empty."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    return {**kept, "HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def test_it_chats_from_any_folder(command: Path, person: dict[str, str], tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [command, *arguments], cwd=tmp_path, env=person, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = [json.loads(line) for line in run("models", "list", "--json").splitlines()]
    scenes = next(Path(one["folder"]) for one in listed if one["name"] == "scenes")
    assert command.parents[1] in scenes.parents
    picture = next(
        file for file in (scenes / "examples").iterdir() if file.suffix in (".png", ".jpg", ".webp")
    )
    try:
        found = json.loads(run("ask", "what is in the picture?", "-a", str(picture), "--json"))
        assert found["text"].strip() and found["usage"]["image_tokens"] > 0
        assert "what is in the picture?" in run("history", "list")
    finally:
        run("engine", "stop")


def test_a_home_that_cannot_be_written_is_one_sentence(
    command: Path, person: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [command, "ask", "hello"],
        cwd=tmp_path,
        env={**person, "HOME": "/dev/null/home"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mmchat: ") and done.stderr.count("\n") == 1
