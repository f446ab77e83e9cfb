"""The set to decline: the same seed makes the same pictures, and all five kinds are in it."""

import json
from pathlib import Path

from tests.acceptance.draw_refusals import ANSWER, SOURCES, build


def test_same_seed_same_set(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert build(first, each=2, seed=3) == build(second, each=2, seed=3) == 2 * len(SOURCES)
    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert len(files) == 2 * len(SOURCES) + 2  # questions.jsonl and data.json
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_every_question_has_its_picture(tmp_path: Path) -> None:
    build(tmp_path, each=1, seed=1)
    for line in (tmp_path / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        assert entry["type"] == "refuse_picture"
        assert entry["answer"] == ANSWER
        assert [message["role"] for message in entry["messages"]] == ["user"]
        assert all((tmp_path / name).is_file() for name in entry["images"])
