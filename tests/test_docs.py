"""The documents name only what exists: files, functions, packages, benchmarks."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("adapters/*/README.md")])
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DECISIONS = ROOT / "docs" / "decisions"
INTERNAL = [ARCHITECTURE, *sorted(DECISIONS.glob("*.md"))]
"""The documents about the code itself."""


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", DOCS, ids=_name)
def test_links_paths_and_benchmarks_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    paths = re.findall(r"`((?:mmchat|tests|adapters|docs)/[\w./-]+)`", text)
    modules = re.findall(r"python -m\s+(tests\.\w+\.\w+)", text)
    named = [file.parent / link for link in links] + [ROOT / path for path in paths]
    named += [ROOT / f"{module.replace('.', '/')}.py" for module in modules]
    assert not [path for path in named if not path.exists()]


def _defined() -> set[str]:
    """The names of all functions and classes of the package, methods as `Class.method` too."""
    found: set[str] = set()
    for file in (ROOT / "mmchat").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{n.name}" for n in node.body if hasattr(n, "name")}
    return found


def test_functions_in_the_documents_about_the_code_exist() -> None:
    defined = _defined()
    for file in INTERNAL:
        called = set(re.findall(r"`([\w.]+)\(\)`", file.read_text(encoding="utf-8")))
        assert not called - defined, _name(file)


def test_the_architecture_names_every_package() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    parts = [p for p in (ROOT / "mmchat").iterdir() if p.is_dir() or p.suffix == ".py"]
    names = {f"mmchat/{part.name}" for part in parts if not part.name.startswith("_")}
    assert not [name for name in sorted(names) if f"`{name}`" not in text]
    assert len(text.splitlines()) <= 200


def test_decisions_are_numbered_and_listed() -> None:
    numbered = [file for file in INTERNAL if file.name[:3].isdigit()]
    assert [int(file.name[:3]) for file in numbered] == list(range(1, len(numbered) + 1))
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    for file in numbered:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {file.name[:3]}. ") and 15 <= len(lines) <= 50, file.name
        assert f"({file.name})" in index, file.name
