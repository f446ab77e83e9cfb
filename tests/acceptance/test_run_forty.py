"""The comparison and the committed set themselves; asking the model is run_forty.py's job."""

import json
from collections import Counter

import pytest

from tests.acceptance.run_forty import FOLDER, is_right


def questions() -> list[dict[str, object]]:
    text = (FOLDER / "questions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("kind", "reference", "prediction", "right"),
    [
        ("colour", "It is red.", "it is red", True),
        ("colour", "It is red.", "It is not red.", False),
        ("read", 'It says "CAT".', "It says 'cat'.", True),
        (
            "caption",
            "I see a red star and two blue crosses.",
            "I see 2 blue crosses and a red star.",
            True,
        ),
        ("caption", "I see two red stars.", "I see a red star and a red star.", True),
        ("caption", "I see two red stars.", "I see a red star.", False),
        ("caption", "I see a red star, a blue ring and a cross.", "a red star", False),
        ("caption", "I see a red star.", "", False),
    ],
)
def test_compares_content(kind: str, reference: str, prediction: str, right: bool) -> None:
    assert is_right(kind, reference, prediction) is right


def test_forty_questions_with_their_pictures() -> None:
    entries = questions()
    assert len({entry["id"] for entry in entries}) == 40
    assert Counter(entry["type"] for entry in entries)["caption"] == 4
    for entry in entries:
        names = entry["images"]
        assert isinstance(names, list)
        assert names
        assert all((FOLDER / name).is_file() for name in names)
