"""Classes, yes or no, texts and comparisons: computed by hand, and against other libraries."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.tokenize import tokenize
from sacrebleu.metrics import BLEU
from sklearn.metrics import precision_recall_fscore_support

from mmchat.errors import DataError
from mmchat.evaluation.classification import (
    REFUSAL,
    SOMETHING_ELSE,
    classify,
    compute_yes_no,
    parse_pope,
    parse_strict,
)
from mmchat.evaluation.graders import find_grader
from mmchat.evaluation.questions import Message, Question
from mmchat.evaluation.report import (
    comparison_markdown,
    draw_confusion,
    metrics_markdown,
    result_markdown,
)
from mmchat.evaluation.results import (
    EvaluationResult,
    EvaluationSetup,
    compare,
    compute_metrics,
    make_result,
    most_frequent_share,
)
from mmchat.evaluation.statistics import Proportion
from mmchat.evaluation.text_metrics import (
    RougeTokenizer,
    bleu_of_counts,
    compute_text_metrics,
    score_texts,
)
from mmchat.images import decode

SETUP = EvaluationSetup("m", "h", "", "", "4bit", "float32", "cpu", "data", "d" * 64, {})


def evaluated(
    pairs: list[tuple[str, str]], kinds: list[str] | None = None, grader: str = ""
) -> EvaluationResult:
    """pairs: (reference, prediction)"""
    kinds = kinds or ["answers"] * len(pairs)
    asked = [
        (Question(str(n), kind, [Message("user", f"question {n}")], wanted), given)
        for n, ((wanted, given), kind) in enumerate(zip(pairs, kinds, strict=True))
    ]
    return make_result(SETUP, asked, grader=find_grader(grader))


def test_classes_by_hand() -> None:
    pairs = [("Cat.", "cat")] * 3 + [("Cat.", "dog"), ("dog", "Dog!"), ("dog", "a cow")]
    pairs += [("dog", "dog"), ("I can only talk about simple drawn scenes.", "dog")]
    pairs += [("I can only talk about simple drawn scenes. Sorry", "x")]
    (found,) = classify(evaluated(pairs, grader="scenes").answers)
    assert found.labels == ("cat", "dog", REFUSAL)
    assert found.matrix.tolist() == [[3, 1, 0, 0], [0, 2, 0, 1], [0, 1, 0, 1]]
    cat, dog, declined = found.classes
    assert (cat.precision, cat.recall) == (Proportion(3, 3), Proportion(3, 4))
    assert (dog.precision, dog.recall) == (Proportion(2, 4), Proportion(2, 3))
    assert (declined.precision, declined.recall, declined.f1.value) == (
        Proportion(0, 0),
        Proportion(0, 2),
        0,
    )
    assert cat.f1.value == pytest.approx(6 / 7)
    assert found.macro.f1.value == pytest.approx((6 / 7 + 4 / 7) / 3)
    assert found.accuracy == Proportion(5, 9)
    assert found.micro.precision.value == pytest.approx(5 / 7)
    assert found.micro.recall.value == pytest.approx(5 / 9)
    assert found.to_dict()["confusion"]["columns"][-1] == SOMETHING_ELSE


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=9))
def test_class_metrics_equal_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    found = classify(evaluated(pairs).answers)
    wanted, given_ = zip(*pairs, strict=True)
    if len(set(wanted)) < 2:
        assert found == ()
        return
    labels = sorted(set(wanted))
    by_class = {one.label: one for one in found[0].classes}
    parts = precision_recall_fscore_support(wanted, given_, labels=labels, zero_division=0)
    for place, label in enumerate(labels):
        one = by_class[label]
        mine = (one.precision.value, one.recall.value, one.f1.value, one.recall.n)
        assert mine == pytest.approx(tuple(part[place] for part in parts))
        assert one.f1.interval[0] <= one.f1.value + 1e-9
        assert one.f1.value - 1e-9 <= one.f1.interval[1]
    for average, name in ((found[0].macro, "macro"), (found[0].micro, "micro")):
        theirs = precision_recall_fscore_support(
            wanted, given_, labels=labels, average=name, zero_division=0
        )[:3]
        mine = (average.precision.value, average.recall.value, average.f1.value)
        assert mine == pytest.approx(theirs)


def test_when_answers_are_classes() -> None:
    assert classify(evaluated([("a", "a")] * 9).answers) == ()  # one answer
    assert classify(evaluated([(str(n), "") for n in range(9)]).answers) == ()  # texts
    pairs = [(str(n % 2), "0") for n in range(8)] + [(f"text {n}", "?") for n in range(8)]
    (found,) = classify(evaluated(pairs, ["bit"] * 8 + ["text"] * 8).answers)
    assert (found.type, found.labels) == ("bit", ("0", "1"))


@pytest.mark.parametrize("count", [1, 2, 14])
def test_the_confusion_matrix_can_be_drawn_with_hostile_labels(count: int) -> None:
    names = ["$\\frac{a}$", "漢字", "\x1b[31m" + "x" * 99, "_^"]
    pairs = [(name, names[0]) for name in names for _ in range(3)] + [(names[1], "else")]
    (one,) = classify(evaluated(pairs).answers)
    png = draw_confusion([one] * count)
    assert png.startswith(b"\x89PNG")
    assert len({pixel for _, pixel in decode(png, max_side=400).getcolors(1 << 20) or []}) > 20


@pytest.mark.parametrize(
    ("answer", "pope", "strict"),
    [
        ("Yes.", "yes", "yes"),
        ("No, there is none.", "no", "no"),
        ("yes", "yes", "yes"),
        ("NO", "yes", "no"),  # POPE knows No, no and not
        ("There is not. Yes.", "no", ""),
        ("I see a dog. It is not red.", "yes", ""),
        ("Nothing", "yes", ""),
        ("No parking", "no", ""),
        ("It isn't", "yes", ""),
        ("", "yes", ""),
        ("yes - two", "yes", "yes"),
    ],
)
def test_the_pope_parser_and_the_strict_parser(answer: str, pope: str, strict: str) -> None:
    assert (parse_pope(answer), parse_strict(answer)) == (pope, strict)


def test_yes_and_no_by_hand() -> None:
    pairs = [("Yes.", "Yes.")] * 3 + [("Yes.", "No."), ("Yes.", "maybe")]
    pairs += [("No.", "No.")] * 2 + [("No.", "Yes."), ("No.", "There is not."), ("No.", "hm")]
    found = compute_yes_no(evaluated([*pairs, ("red", "yes")]).answers)
    assert found is not None
    assert (found.n, found.reference_yes, found.unparsed) == (10, 5, Proportion(3, 10))
    # POPE: yes to 4 of 5 and to 2 of 5.
    assert (found.pope.accuracy, found.pope.yes_ratio) == (Proportion(7, 10), Proportion(6, 10))
    assert (found.pope.precision, found.pope.recall) == (Proportion(4, 6), Proportion(4, 5))
    assert found.pope.f1.value == pytest.approx(8 / 11)
    assert (found.strict.accuracy, found.strict.yes_ratio) == (Proportion(5, 10), Proportion(4, 10))
    assert (found.strict.precision, found.strict.recall) == (Proportion(3, 4), Proportion(3, 5))
    assert found.strict.f1.value == pytest.approx(6 / 9)
    assert compute_yes_no(evaluated([("red", "yes")]).answers) is None


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_bleu_of_summed_counts_equals_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    alone = BLEU(effective_order=True)
    rows = []
    for wanted, said in pairs:
        one = alone.sentence_score(said, [wanted])
        rows.append([one.sys_len, one.ref_len, *one.counts, *one.totals])
    theirs = BLEU().corpus_score([said for _, said in pairs], [[want for want, _ in pairs]])
    mine = bleu_of_counts(np.array(rows, np.float64).sum(0)[None])[0]
    assert mine == pytest.approx(theirs.score, abs=1e-6)


def test_texts_by_hand() -> None:
    pairs = [("i see a red star", "i see a star"), ("red", "red")]
    found = compute_text_metrics(evaluated(pairs).answers)
    assert found is not None and found.n == 1
    # 4 of the 4 words given are among the 5 wanted; 2 pairs of 3, of 4 wanted.
    assert found.rouge["rouge1"].value == pytest.approx(8 / 9)
    assert found.rouge["rouge2"].value == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert found.rouge["rougeL"].value == pytest.approx(8 / 9)
    assert "tok:13a" in found.bleu_signature
    assert compute_text_metrics(evaluated([("red", "red")]).answers) is None


def test_texts_of_any_script_have_words() -> None:
    for text in ("Das Mädchen füttert Enten.", "кошка сидит на окне", "一只猫坐在窗台上"):
        found = compute_text_metrics(evaluated([(text, text)]).answers)
        assert found is not None
        assert found.rouge["rougeL"].value == 1
        assert found.bleu.value == pytest.approx(100)
    assert "tok:char" in found.bleu_signature
    half = compute_text_metrics(evaluated([("一只猫坐在窗台上", "一只猫坐")]).answers)
    assert half is not None and half.rouge["rouge1"].value == pytest.approx(2 / 3)


@given(st.text(st.characters(max_codepoint=126), max_size=40))
def test_ascii_words_equal_those_of_rouge_score(text: str) -> None:
    assert RougeTokenizer().tokenize(text) == tokenize(text, None)


def test_scores_of_equal_and_of_different_captions() -> None:
    same = ["I see a small red star and a large blue ring."]
    assert score_texts(same, same).bleu == pytest.approx(100)
    assert score_texts(same, same).rouge_l == 1
    # The longest common subsequence of 4 words and 3 has 3: P 3/4, R 1, F 6/7.
    assert score_texts(["i see a star"], ["i see star"]).rouge_l == pytest.approx(6 / 7)
    # 1-grams 3/4, 2-grams 1/3, 3-grams none (smoothed 1/4), 4-grams none (1/4); no brevity penalty.
    bleu = 100 * (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** (1 / 4)
    assert score_texts(["i see a star"], ["i see star"]).bleu == pytest.approx(bleu)
    assert "tok:13a" in score_texts(same, same).bleu_signature


def test_captions_and_all_texts_are_scored_the_same_way() -> None:
    """In any script."""
    for wanted, said in (
        ("кошка сидит на окне", "кошка сидит на столе"),
        ("一只猫坐在窗台上", "一只猫坐"),
    ):
        made = evaluated([(wanted, said)], ["caption"])
        texts, words = compute_text_metrics(made.answers), made.types[0].caption_scores
        assert texts is not None and words is not None
        assert words.rouge_l == texts.rouge["rougeL"].value > 0
        assert words.bleu == texts.bleu.value > 0
        assert words.bleu_signature == texts.bleu_signature


def unanswered(wanted: str) -> EvaluationResult:
    """The result of one question that could not be answered."""
    return make_result(SETUP, [(Question("0", "t", [], wanted), "")], errors={"0": "too long"})


def test_what_could_not_be_answered_is_never_right() -> None:
    for wanted in ("", "-", "the", "a cat"):
        made = unanswered(wanted)
        found = compute_metrics(made.answers)
        assert made.exact_match == found.same_words == found.verbatim == Proportion(0, 1)
        assert not made.answers[0].correct
        rows = {row.name: row for row in compare(made, made, ("A", "B")).rows}
        assert rows["same words"].first == 0
    for wanted in ("yes", "no"):
        found_yes_no = compute_yes_no(unanswered(wanted).answers)
        assert found_yes_no is not None
        for one in (found_yes_no.pope, found_yes_no.strict):
            assert (one.accuracy, one.yes_ratio) == (Proportion(0, 1), Proportion(0, 1))
    empty = compute_yes_no(evaluated([("yes", "")]).answers)
    assert empty is not None and empty.pope.accuracy == Proportion(
        1, 1
    )  # an answer, and POPE's yes


def test_refusals_count_by_the_reference_whatever_the_type() -> None:
    refusal = "I can only talk about simple drawn scenes."
    pairs = [(refusal, refusal), (refusal, "red"), ("red", refusal), ("red", "red")]
    found = evaluated([*pairs, ("red", "blue")], grader="scenes")
    assert found.correctly_declined == Proportion(1, 2)
    assert found.wrongly_declined == Proportion(1, 3)
    unknown = evaluated(pairs)  # without a grader that knows refusals
    assert unknown.wrongly_declined == Proportion(0, 4)
    assert "declined" in result_markdown(found)
    assert "declined" not in result_markdown(unknown)


def test_a_comparison_by_hand() -> None:
    wanted = [f"a text of words {n}" for n in range(10)]
    first = evaluated([(w, w) for w in wanted[:8]] + [(w, "?") for w in wanted[8:]])
    second = evaluated([(w, "?") for w in wanted[:5]] + [(w, w) for w in wanted[5:]])
    found = compare(first, second, ("A", "B"))
    every = found.rows[0]
    assert (every.n, every.first, every.second) == (10, 0.8, 0.5)
    assert (every.only_first, every.only_second) == (5, 2)
    assert every.p == 2 * (1 + 7 + 21) / 2**7
    assert every.difference.value == pytest.approx(0.3)
    low, high = every.difference.interval
    assert low < 0.3 < high
    rows: dict[str, Any] = {row.name: row for row in found.rows}
    assert rows["ROUGE-L"].difference.value == pytest.approx(0.3)
    assert rows["BLEU"].first > rows["BLEU"].second
    table = comparison_markdown(found)
    assert "A" in table.splitlines()[0] and "+30.0" in table
    back = compare(second, first, ("B", "A"))
    assert back.rows[0].p == every.p
    assert back.rows[0].difference.value == pytest.approx(-0.3)
    same = compare(first, first, ("A", "A"))
    assert all(row.p == 1 and row.difference.value == 0 for row in same.rows)
    assert all(row.difference.interval == (0, 0) for row in same.rows if not row.is_share)


def test_a_comparison_needs_common_questions() -> None:
    first = evaluated([("a", "a")])
    other = make_result(SETUP, [(Question("other", "t", [], "a"), "a")])
    with pytest.raises(DataError, match="no question in common"):
        compare(first, other, ("A", "B"))


def test_the_metrics_as_text_and_json() -> None:
    pairs = [("red", "red"), ("red", " Red.")] * 3 + [("blue", "red")] * 3
    found = compute_metrics(evaluated(pairs).answers)
    assert (found.verbatim, found.same_words) == (Proportion(3, 9), Proportion(6, 9))
    text = metrics_markdown(found)
    assert "Character for character: 33.3 %" in text and "| macro" in text
    made = found.to_dict()
    assert made["yes_no"] is None and made["texts"] is None
    assert made["classes"][0]["accuracy"] == pytest.approx(6 / 9)


def test_the_most_frequent_answer_is_counted_within_its_group() -> None:
    yes_no = [("is_there", "yes")] * 3 + [("is_there", "no")] * 2
    colours = [("colour", "red"), ("colour", "red"), ("colour", "blue")]
    assert most_frequent_share(yes_no) == 3 / 5
    assert most_frequent_share(yes_no + colours) == 5 / 8
    assert most_frequent_share([]) == 0
