"""Whole evaluations through a real engine process that answers by script."""

import hashlib
import json
from pathlib import Path

import pytest

from mmchat.data.types import Dataset, Example, Picture
from mmchat.data.types import Turn as TrueTurn
from mmchat.errors import DataError, EngineError
from mmchat.evaluation.metrics import Share
from mmchat.evaluation.questions import Message, Question, Text, grey
from mmchat.evaluation.reading import questions_of
from mmchat.evaluation.report import Subject, TypeReport, make_report
from mmchat.evaluation.run import evaluate
from mmchat.images import decode
from mmchat.settings import load_settings, paths
from tests.client.asking import png
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
        evaluate(folder, load_settings(), model=model, parallel=1)
    with pytest.raises(EngineError, match="question 2 was not answered"):
        evaluate(folder, load_settings(), model=model, parallel=1)
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


def only_type(asked: list[tuple[Question, str]]) -> TypeReport:
    """The figures of answers to questions of one type."""
    subject = Subject("m", "h", "", "", "4bit", "float32", "cpu", "data", "d" * 64, {})
    (found,) = make_report(subject, asked, 0, "").types
    return found


def test_a_control_shows_whether_the_model_knows_too_much() -> None:
    def control(right: int) -> TypeReport:
        asked = []
        for number in range(1000):
            wanted = "red" if number < 300 else f"colour {number}"
            said = wanted if number < right else "?"
            asked.append((Question(str(number), "colour", [], wanted), said))
        return only_type(asked)

    assert control(300).most_frequent == 0.3
    assert not control(300).above_most_frequent
    assert not control(370).above_most_frequent  # Wilson: from 0.3406
    assert control(385).above_most_frequent  # Wilson: from 0.3553


def test_captions_within_another_type_are_compared_as_captions() -> None:
    wanted = "I see a small red star and a large blue ring."
    said = "I see a large blue ring and a small red star."
    question = Question("1", "compare", [], wanted, group="compare/caption")
    assert only_type([(question, said)]).exact_match == Share(1, 1)
    plain = Question("1", "compare", [], wanted, group="compare/more")
    assert only_type([(plain, said)]).exact_match == Share(0, 1)


def test_objects_are_counted_only_in_captions_that_list_them() -> None:
    def captions(*pairs: tuple[str, str]) -> TypeReport:
        """pairs: (wanted, given)"""
        asked = [
            (Question(str(n), "caption", [Message("user", [Text("?")])], wanted), said)
            for n, (wanted, said) in enumerate(pairs)
        ]
        return only_type(asked)

    built_in = captions((STAR, "I see a small red star."), (STAR, "I see nothing."))
    assert built_in.things_right == Share(1, 2)
    free = captions(("A dog runs on a beach.", "A dog runs on a beach."), (STAR, STAR))
    assert free.exact_match == Share(2, 2)
    assert free.things_right is None and "every_object_right" not in free.to_dict()
    assert free.wording is not None and free.wording.rouge_l == 1


def test_a_types_name_cannot_break_the_table() -> None:
    asked = [(Question("1", "a|b\n\x1b[31m", [], "x"), "x")]
    found = only_type(asked)
    assert found.exact_match == Share(1, 1)


def picture(grey: int = 0) -> Picture:
    data = png(grey)
    return Picture(hashlib.sha256(data).hexdigest(), "image/png", 2, 2, f"{grey}.png", held=data)


def example(*said: str | tuple[str | Picture, ...], kind: str = "", **more: bool) -> Example:
    """Turns of the person and of the model, one after another."""
    turns = [
        TrueTurn("assistant" if number % 2 else "user", (one,) if isinstance(one, str) else one)
        for number, one in enumerate(said)
    ]
    return Example(tuple(turns), kind, "data.json, line 1", **more)


def dataset(*examples: Example) -> Dataset:
    return Dataset("some form", "data.json", examples, (), "0" * 64)


@pytest.mark.usefixtures("scripted_engine")
def test_every_answer_of_a_dataset_is_a_question_after_the_true_turns(model: str) -> None:
    shown = picture()
    data = dataset(
        example((shown, "say red"), "blue", "echo-turns", "?", kind="colour"),
        example("say one", "one", "say two", "two", only_last=True),
    )
    report = evaluate(data, load_settings(), model=model)
    first, second, third = report.outcomes
    assert (first.id, first.type, first.wanted, first.given) == (
        "data.json, line 1#1",
        "colour",
        "blue",
        "red ",
    )
    assert second.given.splitlines() == [
        f"user=<{shown.sha256[:8]}>say red",
        "assistant=blue",
        "user=echo-turns",
    ]
    assert (third.id, third.type, third.right) == ("data.json, line 1#3~2", "answers", True)
    assert (report.total.hits, report.total.n) == (1, 3)
    assert {one.name: one.exact_match.n for one in report.types} == {"colour": 2, "answers": 1}
    assert evaluate(data, load_settings(), model=model).reused == 3


@pytest.mark.usefixtures("scripted_engine")
def test_data_of_another_form_is_recognised_and_its_held_out_part_asked(
    tmp_path: Path, model: str
) -> None:
    line_ = '{"messages": [{"role": "user", "content": "say %s"}, {"role": "assistant", "content": "a"}]}'
    (tmp_path / "train.jsonl").write_text("".join(f"{line_ % n}\n" for n in range(5)))
    (tmp_path / "test.jsonl").write_text(f"{line_ % 'a'}\n{line_ % 'b'}\n")
    folder = tmp_path / "chats"
    folder.mkdir()
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").rename(folder / f"{name}.jsonl")
    report = evaluate(folder, load_settings(), model=model)
    assert [one.given.strip() for one in report.outcomes] == ["a", "b"]
    assert report.total == Share(1, 2)


@pytest.mark.usefixtures("scripted_engine")
def test_what_the_model_has_no_room_for_is_wrong_and_the_others_are_asked(model: str) -> None:
    data = dataset(example("say a", "a"), example("too-long", "b"), example("say c", "c"))
    for reused in (0, 2):
        report = evaluate(data, load_settings(), model=model)
        assert (report.total, report.reused) == (Share(2, 3), reused)
        (one,) = [outcome for outcome in report.outcomes if outcome.unanswered]
        assert (one.given, one.right) == ("", False)
        assert one.to_dict()["unanswered"].startswith("The last message takes 9 tokens")


def test_a_long_wanted_answer_has_room() -> None:
    assert questions_of(dataset(example("a", "b"))).max_tokens == 96
    assert questions_of(dataset(example("a", "b" * 600), example("a", "b"))).max_tokens == 300
    assert questions_of(dataset(example("a", "b" * 9000))).max_tokens == 1024


def test_a_dataset_without_an_answer_is_a_sentence() -> None:
    with pytest.raises(DataError, match=r"data.json holds no question with an answer"):
        evaluate(dataset(), load_settings())


@pytest.mark.usefixtures("scripted_engine")
def test_none_is_the_bare_base_whatever_the_settings_say(model: str, tmp_path: Path) -> None:
    data = dataset(example("say a", "a"))
    settings = load_settings({"model.name": model, "model.adapter": "mine"})
    assert evaluate(data, settings).subject.adapter == "mine"
    assert evaluate(data, settings, adapter="none").subject.adapter == ""
    folder = tmp_path / "birds"
    folder.mkdir()
    assert evaluate(data, settings, adapter=str(folder)).subject.adapter == str(folder)


def test_a_remote_servers_adapter_cannot_be_chosen() -> None:
    settings = load_settings({"engine.url": "http://127.0.0.1:9/v1"})
    with pytest.raises(EngineError, match="adapter cannot be chosen"):
        evaluate(dataset(example("a", "b")), settings, adapter="birds")


@pytest.mark.usefixtures("scripted_engine")
def test_the_control_shows_grey_pictures_of_the_same_size(tmp_path: Path, model: str) -> None:
    lines = [line("1", "echo-images", "x", images=("a.png",)), line("2", "say hi", "hi")]
    folder = write(tmp_path / "data", lines)
    report = evaluate(folder, load_settings(), model=model, blank=True)
    (only,) = report.outcomes
    assert only.given == f"1 pictures: {hashlib.sha256(grey(2, 2)).hexdigest()} "
    assert decode(grey(2, 2)).getpixel((1, 1)) == (128, 128, 128)
    assert (report.subject.blank, report.reused) == (True, 0)
    assert evaluate(folder, load_settings(), model=model).reused == 0
    assert evaluate(folder, load_settings(), model=model, blank=True).reused == 1


@pytest.mark.usefixtures("scripted_engine")
@pytest.mark.parametrize("parallel", [1, 4, 64])
def test_however_many_are_under_way_the_report_is_the_same(model: str, parallel: int) -> None:
    data = dataset(*(example(f"say {n}", str(n % 3)) for n in range(9)))
    report = evaluate(data, load_settings(), model=model, parallel=parallel)
    assert [one.given.strip() for one in report.outcomes] == [str(n) for n in range(9)]
    assert report.total == Share(3, 9)


@pytest.mark.usefixtures("scripted_engine")
def test_a_failure_among_several_keeps_what_was_answered(tmp_path: Path, model: str) -> None:
    lines = [line(str(n), f"say {n}", str(n)) for n in range(6)]
    folder = write(tmp_path / "data", [*lines, line("x", "oom", "x")])
    with pytest.raises(EngineError, match=r"question x was not answered.*memory"):
        evaluate(folder, load_settings(), model=model, parallel=3)
    kept = list(paths().cache.rglob("answers.jsonl"))
    assert len(kept) == 1 and len(kept[0].read_text().splitlines()) >= 4
