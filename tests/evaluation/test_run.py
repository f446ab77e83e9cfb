"""Whole evaluations through a real engine process that answers by script."""

import hashlib
import json
from pathlib import Path

import pytest

from mmchat.errors import EngineError
from mmchat.evaluation.metrics import Share
from mmchat.evaluation.questions import Question
from mmchat.evaluation.report import TypeReport, report_type
from mmchat.evaluation.run import evaluate
from mmchat.settings import load_settings
from tests.engine.scripted import answers
from tests.evaluation.folders import line, write

REFUSAL = "I can only talk about simple drawn scenes. Load a larger model."
STAR = "I see a small red star."


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with weights, so that what answered is known; the script does not read them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return str(folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(
        tmp_path / "data",
        [
            line("1", "say It is red.", "it is red", images=("a.png",), choice="red"),
            line("2", "say It is blue.", "It is red.", images=("a.png",), choice="red"),
            line("3", f"say {REFUSAL}", "It is green.", choice="green"),
            line("4", f"say {STAR}", STAR, kind="caption", images=("a.png", "b.png")),
            line("5", f"say {REFUSAL}", REFUSAL, kind="refuse_picture", images=("b.png",)),
            line("6", "say It is red.", REFUSAL, kind="refuse_picture", images=("b.png",)),
        ],
    )


@pytest.mark.usefixtures("scripted_engine")
def test_an_evaluation_counts_what_the_engine_says(data: Path, model: str) -> None:
    told: list[tuple[str, float]] = []
    report = evaluate(data, load_settings(), model=model, progress=lambda *said: told.append(said))
    assert ("Question 6 of 6", 5 / 6) in told
    found = json.loads(json.dumps(report.to_dict()))
    assert found["overall"]["n"] == 6
    assert found["overall"]["exact_match"] == 3 / 6
    assert found["overall"]["mean_exact_match"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert found["overall"]["rightly_declined"]["share"] == 1 / 2
    assert found["overall"]["wrongly_declined"]["share"] == 1 / 4
    colour = found["types"]["colour"]
    assert (colour["n"], colour["exact_match"], colour["most_frequent_share"]) == (3, 1 / 3, 2 / 3)
    assert colour["interval"] == pytest.approx([0.0615, 0.7923], abs=1e-4)
    assert colour["declined"] == 1 / 3
    assert found["types"]["caption"]["every_object_right"] == 1
    assert found["types"]["caption"]["rouge_l"] == 1
    assert found["model"] == model
    assert (found["quantization"], found["device"], found["reused"]) == ("4bit", "cpu", 0)
    assert len(found["data_sha256"]) == len(found["weights_hash"]) == 64
    table = report.to_markdown()
    assert "| caption         | 1 |     100.0 % |  20.7–100.0 % |" in table
    assert "Declined of what is to be declined: 50.0 % (9.5–90.5 %; n = 2)." in table
    assert str(data.parent) not in table


@pytest.mark.usefixtures("scripted_engine")
def test_what_was_answered_is_not_asked_again(data: Path, model: str) -> None:
    settings = load_settings({"model.name": model})
    first = evaluate(data, settings, limit=1)
    assert (first.exact_match, first.reused) == (Share(3, 3), 0)
    second = evaluate(data, settings)
    assert (second.exact_match, second.reused) == (Share(3, 6), 3)
    assert second.answers_file == first.answers_file
    assert len(answers()) == 6
    file = Path(first.answers_file)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    # A run that was killed leaves half a line, which is asked again and harms nothing.
    file.write_bytes(file.read_bytes()[:-5])
    third = evaluate(data, settings)
    assert (third.exact_match, third.reused) == (Share(3, 6), 5)
    assert evaluate(data, settings).reused == 6
    assert evaluate(data, settings, adapter="other").reused == 0


@pytest.mark.usefixtures("scripted_engine")
def test_an_engine_that_fails_stops_with_its_sentence_and_keeps_the_answers(
    tmp_path: Path, model: str
) -> None:
    lines = [line("1", "say It is red.", "It is red."), line("2", "oom", "x")]
    folder = write(tmp_path / "data", [*lines, line("3", "say yes", "yes")])
    with pytest.raises(EngineError, match=r"question 2 was not answered.*is kept.*memory"):
        evaluate(folder, load_settings(), model=model)
    with pytest.raises(EngineError, match="question 2 was not answered"):
        evaluate(folder, load_settings(), model=model)
    assert [one["text"] for one in answers()] == ["say It is red.", "oom", "oom"]


@pytest.mark.usefixtures("scripted_engine")
def test_without_known_weights_everything_is_asked_again(data: Path) -> None:
    settings = load_settings({"model.name": "some-model"})
    for _ in range(2):
        report = evaluate(data, settings)
        assert (report.reused, report.subject.weights_hash) == (0, "")
    assert len(answers()) == 12


@pytest.mark.usefixtures("scripted_engine")
def test_weights_that_changed_under_the_engine_are_read_and_asked_anew(
    data: Path, model: str
) -> None:
    first = evaluate(data, load_settings(), model=model, limit=1)
    (Path(model) / "model.safetensors").write_bytes(b"trained on")
    second = evaluate(data, load_settings(), model=model, limit=1)
    assert second.subject.weights_hash == hashlib.sha256(b"trained on").hexdigest()
    assert first.subject.weights_hash != second.subject.weights_hash
    assert second.reused == 0


def test_a_control_shows_whether_the_model_knows_too_much() -> None:
    def control(right: int) -> TypeReport:
        asked = []
        for number in range(1000):
            wanted = "red" if number < 300 else f"colour {number}"
            said = wanted if number < right else "?"
            asked.append((Question(str(number), "colour", [], wanted), said))
        return report_type("colour", asked)

    assert control(300).most_frequent == 0.3
    assert not control(300).above_most_frequent
    assert not control(370).above_most_frequent  # Wilson: from 0.3406
    assert control(385).above_most_frequent  # Wilson: from 0.3553


def test_captions_within_another_type_are_compared_as_captions() -> None:
    wanted = "I see a small red star and a large blue ring."
    said = "I see a large blue ring and a small red star."
    question = Question("1", "compare", [], wanted, group="compare/caption")
    assert report_type("compare", [(question, said)]).exact_match == Share(1, 1)
    plain = Question("1", "compare", [], wanted, group="compare/more")
    assert report_type("compare", [(plain, said)]).exact_match == Share(0, 1)


def test_a_types_name_cannot_break_the_table() -> None:
    asked = [(Question("1", "a|b\n\x1b[31m", [], "x"), "x")]
    found = report_type("a|b\n\x1b[31m", asked)
    assert found.exact_match == Share(1, 1)
