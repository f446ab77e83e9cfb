"""Whole evaluations through a real engine process with scripted answers."""

import hashlib
import json
from pathlib import Path

import pytest

from mmchat.data.types import Dataset, Example, Picture
from mmchat.errors import DataError, EngineError
from mmchat.evaluation.graders import find_grader
from mmchat.evaluation.question_sets import dataset_questions
from mmchat.evaluation.questions import Message, Question, Text, grey_png
from mmchat.evaluation.report import result_markdown
from mmchat.evaluation.results import TypeMetrics, make_result
from mmchat.evaluation.runner import evaluate
from mmchat.evaluation.statistics import Proportion
from mmchat.images import decode
from mmchat.settings import load_settings, paths
from mmchat.turns import Turn
from tests.client.asking import png
from tests.engine.scripted import answers
from tests.evaluation.folders import line, write
from tests.evaluation.test_results import SETUP

REFUSAL = "I can only talk about simple drawn scenes. Load a larger model."
STAR = "I see a small red star."


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with weights, so that answers are cached. The scripted engine does not read them."""
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
        grader="scenes",
    )


@pytest.mark.usefixtures("scripted_engine")
def test_an_evaluation_counts_what_the_engine_says(data: Path, model: str) -> None:
    told: list[tuple[str, float]] = []
    result = evaluate(data, load_settings(), model=model, progress=lambda *said: told.append(said))
    assert ("Question 6 of 6", 5 / 6) in told
    found = json.loads(json.dumps(result.to_dict()))
    assert found["overall"]["n"] == 6
    assert found["overall"]["exact_match"] == 3 / 6
    assert found["overall"]["mean_exact_match"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert found["overall"]["correctly_declined"]["share"] == 1 / 2
    assert found["overall"]["wrongly_declined"]["share"] == 1 / 4
    colour = found["types"]["colour"]
    assert (colour["n"], colour["exact_match"], colour["most_frequent_share"]) == (3, 1 / 3, 2 / 3)
    assert colour["interval"] == pytest.approx([0.0615, 0.7923], abs=1e-4)
    assert colour["declined"] == 1 / 3
    assert found["types"]["caption"]["objects_correct"] == 1
    assert found["types"]["caption"]["rouge_l"] == 1
    assert found["model"] == model
    assert (found["quantization"], found["device"], found["reused"]) == ("4bit", "cpu", 0)
    assert len(found["data_sha256"]) == len(found["weights_hash"]) == 64
    table = result_markdown(result)
    assert "| caption         | 1 |     100.0 % |  20.7–100.0 % |" in table
    assert "Correctly declined: 50.0 % (9.5–90.5 %; n = 2)." in table
    assert str(data.parent) not in table


@pytest.mark.usefixtures("scripted_engine")
def test_what_was_answered_is_not_asked_again(data: Path, model: str) -> None:
    settings = load_settings({"model.name": model})
    first = evaluate(data, settings, limit=1)
    assert (first.exact_match, first.reused) == (Proportion(3, 3), 0)
    second = evaluate(data, settings)
    assert (second.exact_match, second.reused) == (Proportion(3, 6), 3)
    assert second.answers_file == first.answers_file
    assert len(answers()) == 6
    file = Path(first.answers_file)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    # A run that was killed leaves half a line. Its question is asked again.
    file.write_bytes(file.read_bytes()[:-5])
    third = evaluate(data, settings)
    assert (third.exact_match, third.reused) == (Proportion(3, 6), 5)
    assert evaluate(data, settings).reused == 6
    assert evaluate(data, settings, adapter="other").reused == 0


@pytest.mark.usefixtures("scripted_engine")
def test_an_engine_error_stops_the_evaluation_and_keeps_the_answers(
    tmp_path: Path, model: str
) -> None:
    lines = [line("1", "say It is red.", "It is red."), line("2", "oom", "x")]
    folder = write(tmp_path / "data", [*lines, line("3", "say yes", "yes")])
    with pytest.raises(EngineError, match=r"question 2 was not answered.*memory.*are kept"):
        evaluate(folder, load_settings(), model=model, parallel=1)
    with pytest.raises(EngineError, match="question 2 was not answered"):
        evaluate(folder, load_settings(), model=model, parallel=1)
    assert [one["text"] for one in answers()] == ["say It is red.", "oom", "oom"]


@pytest.mark.usefixtures("scripted_engine")
def test_without_known_weights_everything_is_asked_again(data: Path) -> None:
    settings = load_settings({"model.name": "some-model"})
    for _ in range(2):
        result = evaluate(data, settings)
        assert (result.reused, result.setup.weights_hash) == (0, "")
    assert len(answers()) == 12


@pytest.mark.usefixtures("scripted_engine")
def test_weights_that_have_changed_are_loaded_and_asked_again(data: Path, model: str) -> None:
    first = evaluate(data, load_settings(), model=model, limit=1)
    (Path(model) / "model.safetensors").write_bytes(b"trained on")
    second = evaluate(data, load_settings(), model=model, limit=1)
    assert second.setup.weights_hash == hashlib.sha256(b"trained on").hexdigest()
    assert first.setup.weights_hash != second.setup.weights_hash
    assert second.reused == 0


def only_type(asked: list[tuple[Question, str]]) -> TypeMetrics:
    """The metrics of answers to questions of one type."""
    (found,) = make_result(SETUP, asked, grader=find_grader("scenes")).types
    return found


def test_a_control_shows_whether_the_model_knows_too_much() -> None:
    def control(right: int) -> TypeMetrics:
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
    assert only_type([(question, said)]).exact_match == Proportion(1, 1)
    plain = Question("1", "compare", [], wanted, group="compare/more")
    assert only_type([(plain, said)]).exact_match == Proportion(0, 1)


def test_objects_are_counted_only_in_captions_that_list_them() -> None:
    def captions(*pairs: tuple[str, str]) -> TypeMetrics:
        """pairs: (wanted, given)"""
        asked = [
            (Question(str(n), "caption", [Message("user", [Text("?")])], wanted), said)
            for n, (wanted, said) in enumerate(pairs)
        ]
        return only_type(asked)

    built_in = captions((STAR, "I see a small red star."), (STAR, "I see nothing."))
    assert built_in.objects_correct == Proportion(1, 2)
    free = captions(("A dog runs on a beach.", "A dog runs on a beach."), (STAR, STAR))
    assert free.exact_match == Proportion(2, 2)
    assert free.objects_correct is None and "objects_correct" not in free.to_dict()
    assert free.caption_scores is not None and free.caption_scores.rouge_l == 1


def test_a_types_name_cannot_break_the_table() -> None:
    asked = [(Question("1", "a|b\n\x1b[31m", [], "x"), "x")]
    result = make_result(SETUP, asked)
    assert result.exact_match == Proportion(1, 1)
    header, _, row = result_markdown(result).splitlines()[:3]
    assert row.replace("\\|", "").count("|") == header.count("|") and "a\\|b" in row
    assert "\x1b" not in row


def picture(grey: int = 0) -> Picture:
    data = png(grey)
    return Picture(hashlib.sha256(data).hexdigest(), "image/png", 2, 2, f"{grey}.png", held=data)


def example(*said: str | tuple[str | Picture, ...], kind: str = "", **more: bool) -> Example:
    """Turns of the user and of the model alternate."""
    turns = [
        Turn("assistant" if number % 2 else "user", (one,) if isinstance(one, str) else one)
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
    result = evaluate(data, load_settings(), model=model)
    first, second, third = result.answers
    assert (first.id, first.type, first.reference, first.prediction) == (
        "data.json, line 1#1",
        "colour",
        "blue",
        "red ",
    )
    assert second.prediction.splitlines() == [
        f"user=<{shown.sha256[:8]}>say red",
        "assistant=blue",
        "user=echo-turns",
    ]
    assert (third.id, third.type, third.correct) == ("data.json, line 1#3~2", "answers", True)
    assert (result.exact_match.count, result.exact_match.n) == (1, 3)
    assert {one.name: one.exact_match.n for one in result.types} == {"colour": 2, "answers": 1}
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
    result = evaluate(folder, load_settings(), model=model)
    assert [one.prediction.strip() for one in result.answers] == ["a", "b"]
    assert result.exact_match == Proportion(1, 2)


@pytest.mark.usefixtures("scripted_engine")
def test_a_question_that_is_too_long_is_wrong_and_the_others_are_asked(model: str) -> None:
    data = dataset(example("say a", "a"), example("too-long", "b"), example("say c", "c"))
    for reused in (0, 2):
        result = evaluate(data, load_settings(), model=model)
        assert (result.exact_match, result.reused) == (Proportion(2, 3), reused)
        (one,) = [answer for answer in result.answers if answer.error]
        assert (one.prediction, one.correct) == ("", False)
        assert one.to_dict()["error"].startswith("The last message takes 9 tokens")


def test_the_token_limit_follows_the_longest_reference() -> None:
    assert dataset_questions(dataset(example("a", "b"))).max_tokens == 96
    assert dataset_questions(dataset(example("a", "b" * 600), example("a", "b"))).max_tokens == 300
    assert dataset_questions(dataset(example("a", "b" * 9000))).max_tokens == 1024


def test_a_dataset_without_an_answer_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data.json has no question with an answer"):
        evaluate(dataset(), load_settings())


@pytest.mark.usefixtures("scripted_engine")
def test_the_adapter_none_is_the_base_whatever_the_settings_say(model: str, tmp_path: Path) -> None:
    data = dataset(example("say a", "a"))
    settings = load_settings({"model.name": model, "model.adapter": "mine"})
    assert evaluate(data, settings).setup.adapter == "mine"
    assert evaluate(data, settings, adapter="none").setup.adapter == ""
    folder = tmp_path / "birds"
    folder.mkdir()
    assert evaluate(data, settings, adapter=str(folder)).setup.adapter == str(folder)


def test_a_remote_servers_adapter_cannot_be_chosen() -> None:
    settings = load_settings({"engine.url": "http://127.0.0.1:9/v1"})
    with pytest.raises(EngineError, match="adapter of a remote server cannot be chosen"):
        evaluate(dataset(example("a", "b")), settings, adapter="birds")


@pytest.mark.usefixtures("scripted_engine")
def test_the_control_shows_grey_pictures_of_the_same_size(tmp_path: Path, model: str) -> None:
    lines = [line("1", "echo-images", "x", images=("a.png",)), line("2", "say hi", "hi")]
    folder = write(tmp_path / "data", lines)
    result = evaluate(folder, load_settings(), model=model, blank=True)
    (only,) = result.answers
    assert only.prediction == f"1 pictures: {hashlib.sha256(grey_png(2, 2)).hexdigest()} "
    assert decode(grey_png(2, 2)).getpixel((1, 1)) == (128, 128, 128)
    assert (result.setup.blank, result.reused) == (True, 0)
    assert evaluate(folder, load_settings(), model=model).reused == 0
    assert evaluate(folder, load_settings(), model=model, blank=True).reused == 1


@pytest.mark.usefixtures("scripted_engine")
@pytest.mark.parametrize("parallel", [1, 4, 64])
def test_the_result_does_not_depend_on_how_many_questions_are_sent_at_a_time(
    model: str, parallel: int
) -> None:
    data = dataset(*(example(f"say {n}", str(n % 3)) for n in range(9)))
    result = evaluate(data, load_settings(), model=model, parallel=parallel)
    assert [one.prediction.strip() for one in result.answers] == [str(n) for n in range(9)]
    assert result.exact_match == Proportion(3, 9)


@pytest.mark.usefixtures("scripted_engine")
def test_an_error_among_parallel_questions_keeps_the_other_answers(
    tmp_path: Path, model: str
) -> None:
    lines = [line(str(n), f"say {n}", str(n)) for n in range(6)]
    folder = write(tmp_path / "data", [*lines, line("x", "oom", "x")])
    with pytest.raises(EngineError, match=r"question x was not answered.*memory"):
        evaluate(folder, load_settings(), model=model, parallel=3)
    kept = list(paths().cache.rglob("answers.jsonl"))
    assert len(kept) == 1 and len(kept[0].read_text().splitlines()) >= 4


@pytest.mark.usefixtures("scripted_engine")
def test_the_grader_is_the_one_of_the_data_or_else_of_the_built_in_base(
    tmp_path: Path, model: str
) -> None:
    swapped = f"I see a large blue ring and a {STAR.removeprefix('I see a ')}"
    lines = [
        line("1", f"say {swapped}", f"{STAR[:-1]} and a large blue ring.", kind="caption"),
        line("2", f"say {REFUSAL}", "It is red."),
    ]
    named = write(tmp_path / "named", lines, grader="scenes")
    unnamed = write(tmp_path / "unnamed", lines)
    found = {
        (folder.name, who): evaluate(folder, load_settings(), model=who)
        for folder in (named, unnamed)
        for who in (model, "scenes")
    }
    parsed = {key: result.exact_match.count for key, result in found.items()}
    declined = {key: result.wrongly_declined.count for key, result in found.items()}
    as_text = ("unnamed", model)
    assert parsed == declined == {key: int(key != as_text) for key in found}


def test_an_unknown_grader_is_an_error(tmp_path: Path) -> None:
    for name in ("other", "../scenes/../scenes2", "/tmp"):
        folder = write(tmp_path, [line("1", "?", "x")], grader=name)
        with pytest.raises(DataError, match=r"names the grader .* does not have"):
            evaluate(folder, load_settings())
