"""What the repository promises of itself: light imports, declared dependencies, whole packages."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import mmchat

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "PIL", "peft", "bitsandbytes", "accelerate", "pyarrow"}


def heavy_after(script: str) -> list[str]:
    """The heavy libraries that a fresh interpreter has loaded after `script`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nimport sys; print(*sorted({HEAVY} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "module",
    [
        "mmchat",
        "mmchat.chat.service",
        "mmchat.cli",
        "mmchat.cli.root",
        "mmchat.cli.ask",
        "mmchat.client",
        "mmchat.client.engine_client",
        "mmchat.data",
        "mmchat.data.from_history",
        "mmchat.engine.process",
        "mmchat.history",
        "mmchat.images",
        "mmchat.adapters.card",
        "mmchat.model.catalogue",
        "mmchat.settings",
        "mmchat.training.finetune_config",
        "mmchat.tui",
        "mmchat.tui.app",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert heavy_after(f"import {module}") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["history", "list"],
        ["history", "search", "kite"],
        ["models", "list"],
        ["adapters", "list"],
        ["engine", "status"],
        ["data", "--help"],
        ["train", "--help"],
        ["evaluate", "--help"],
        ["doctor", "--help"],
    ],
    ids=" ".join,
)
def test_commands_that_answer_at_once_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        f"import sys; sys.argv[1:] = {arguments}; from mmchat.cli import main; assert main() == 0"
    )
    assert heavy_after(script) == []


def test_every_library_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["datasets"]
    declared = {_normal(re.split(r"[<>=!~\[; ]", line)[0]) for line in lines}
    distributions = packages_distributions()
    for file in sorted((ROOT / "mmchat").rglob("*.py")):
        for name in _imported(file) - set(sys.stdlib_module_names) - {"mmchat"}:
            found = {_normal(one) for one in distributions.get(name, [name])}
            assert found & declared, f"{file.relative_to(ROOT)} imports {name}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(file: Path) -> set[str]:
    """The top-level packages that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_constraints_name_every_dependency_with_one_exact_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert not [version for version in pinned.values() if not re.fullmatch(r"[0-9.]+", version)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {_normal(name) for name in pinned}
    assert not [line for line in wanted if _normal(re.split(r"[<>=]", line)[0]) not in names]


def test_licence_and_changelog() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert f"## {mmchat.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel as `pip wheel .` makes it, and one made through the sdist."""
    folder = tmp_path_factory.mktemp("packages")
    _hatch("build_sdist", folder, ROOT)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    for name, source in (("direct", ROOT), ("through", next((folder / "unpacked").iterdir()))):
        (folder / name).mkdir()
        _hatch("build_wheel", folder / name, source)
    (folder / "editable").mkdir()
    _hatch("build_editable", folder / "editable", ROOT)
    return folder


def _hatch(hook: str, target: Path, source: Path) -> None:
    script = f"from hatchling.build import {hook}; {hook}({str(target)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True)


def _files(folder: Path) -> set[str]:
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_holds_the_program_and_the_built_in_model(packages: Path) -> None:
    found = _files(packages / "direct")
    assert found == _files(packages / "through")
    ours = {
        f"mmchat/{file.relative_to(ROOT / 'mmchat')}" for file in (ROOT / "mmchat").rglob("*.py")
    }
    assert ours <= found
    built_in = {file for file in (ROOT / "adapters").rglob("*") if file.is_file()}
    # The built-in model draws replay samples for training with its own scripts; others made their data once.
    wanted = {
        f
        for f in built_in
        if f.suffix != ".pyc" and (f.suffix != ".py" or f.parent.name == "scenes")
    }
    assert {f"mmchat/_adapters/{file.relative_to(ROOT / 'adapters')}" for file in wanted} <= found
    for name in found:
        assert name.startswith("mmchat/") and "__pycache__" not in name, name
        script = name.startswith("mmchat/_adapters/") and name.endswith(".py")
        assert not script or name.startswith("mmchat/_adapters/scenes/"), name
    styles = {file.name for file in (ROOT / "mmchat" / "tui").rglob("*.tcss")}
    assert styles <= {name.rpartition("/")[2] for name in found}


def test_an_editable_install_copies_nothing(packages: Path) -> None:
    assert [name for name in _files(packages / "editable") if not name.endswith(".pth")] == []
