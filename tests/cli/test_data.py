"""`mmchat data inspect` in a process of its own, on real folders."""

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmchat.cli.token_count import TokenCount, spread
from tests.cli.conftest import MMCHAT, Run, sentence
from tests.data.making import chat, llava, picture, write_lines, write_pictures
from tests.model import tiny

NO_MODEL = {"MMCHAT_MODEL_NAME": "nothing-here"}
"""Tokens are not counted, and torch is not imported."""


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Three classes of 40 pictures, one of them a copy."""
    names = [f"{kind}/{n:02}.png" for kind in ("red_kite", "owl", "barn_owl") for n in range(40)]
    folder = write_pictures(tmp_path / "birds", names)
    (folder / "owl" / "00.png").write_bytes((folder / "owl" / "01.png").read_bytes())
    return folder


def inspected(mmchat: Run, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = mmchat("data", "inspect", *arguments, "--json", **NO_MODEL)
    assert done.returncode == status, done.stderr
    (line,) = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_what_a_folder_holds(mmchat: Run, birds: Path) -> None:
    found = inspected(mmchat, str(birds))
    assert (found["format"], found["samples"], found["bad"]) == ("a folder per class", 120, 0)
    assert (found["questions"], found["pictures"], found["pictures_shown"]) == (120, 119, 120)
    assert found["classes"] == {"barn owl": 40, "owl": 40, "red kite": 40}
    assert found["copies"] == [[str(birds / "owl" / "00.png"), str(birds / "owl" / "01.png")]]
    assert found["train"] + found["held_out"] == 120 and 15 <= found["held_out"] <= 21
    assert set(found["held_out_classes"]) == set(found["classes"]) and not found["own_split"]
    assert found["tokens"] is None and "no model nothing-here" in found["tokens_problem"]
    shown = mmchat("data", "inspect", "birds", **NO_MODEL)
    assert (shown.returncode, shown.stderr) == (0, "")
    for part in (
        "a folder per class",
        "119 different",
        "1 picture is in several files",
        "red kite",
        "not counted",
    ):
        assert part in shown.stdout


def test_tokens_are_counted_as_training_counts_them(mmchat: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    rows = [{"image": "a.png", "conversations": llava("<image>what is it?", "a kite")}] * 5
    rows.append(
        {"image": "a.png", "conversations": llava("<image>a", "b " * 1100, "c", "d " * 1100)}
    )
    rows.append({"image": "a.png", "conversations": llava("<image>a", "b " * 3000)})
    file = write_lines(tmp_path / "d.jsonl", rows)
    done = mmchat("data", "inspect", str(file), "--json", MMCHAT_MODEL_NAME="scenes")
    tokens = json.loads(done.stdout)["tokens"]
    assert tokens["model"] == "scenes" and tokens["counted"] == 7 and tokens["problems"] == []
    assert tokens["limit"] <= tokens["context"]
    assert tokens["of_pictures"] == 7 * 64 and tokens["shortest"] == tokens["median"] < 100
    assert (tokens["cut"], tokens["too_long"]) == (1, 1)
    assert sum(one["samples"] for one in tokens["histogram"]) == 7
    assert tokens["histogram"][0]["samples"] >= 5


def test_problems_are_told_with_file_and_line(mmchat: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", ["a.png"])
    (tmp_path / "data" / "broken.png").write_bytes(picture(1)[:40])
    good = {"image": "a.png", "conversations": llava("?", "x")}
    rows = [{**good, "image": "gone.png"}, {**good, "image": "broken.png"}, {"messages": chat("?")}]
    file = write_lines(tmp_path / "data" / "d.jsonl", [good, *rows, *[{"messages": []}] * 30])
    file.write_text(file.read_text() + "{\n")
    found = inspected(mmchat, "data", status=1)
    assert (found["pictures_missing"], found["pictures_broken"], found["bad"]) == (1, 1, 34)
    assert [problem["place"] for problem in found["problems"][:2]] == [
        "data/d.jsonl, line 2",
        "data/d.jsonl, line 3",
    ]
    assert found["problems"][0]["about"] == "missing" and len(found["problems"]) == 34
    done = mmchat("data", "inspect", "data", **NO_MODEL)
    assert "data/d.jsonl, line 2: the picture gone.png does not exist" in done.stdout
    assert "line 21" in done.stdout and "line 22" not in done.stdout
    assert "and 14 more (--json has all)" in done.stdout
    assert (
        "34 of 35 samples of data cannot be used" in sentence(done) and "--allow-bad" in done.stderr
    )
    assert "line 2" not in done.stderr  # each problem is listed once
    assert done.stdout.count("the picture gone.png does not exist") == 1
    assert mmchat("data", "inspect", "data", "--allow-bad", **NO_MODEL).returncode == 0
    assert inspected(mmchat, "data", "--allow-bad")["bad"] == 34


def test_copies_in_both_parts_of_the_datas_own_split(mmchat: Run, tmp_path: Path) -> None:
    names = [
        f"{side}/{kind}/{n}.png" for side in ("train", "test") for kind in "ab" for n in range(5)
    ]
    folder = write_pictures(tmp_path / "birds", names)
    (folder / "test" / "a" / "0.png").write_bytes((folder / "train" / "a" / "0.png").read_bytes())
    found = inspected(mmchat, "birds")
    assert found["own_split"] and (found["train"], found["held_out"]) == (9, 10)
    assert "held-out split has it too" in found["problems"][0]["why"] and found["bad"] == 0
    assert "the split in the data" in mmchat("data", "inspect", "birds", **NO_MODEL).stdout


def test_pictures_elsewhere(mmchat: Run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "coco", ["a.png"])
    write_lines(
        tmp_path / "data" / "d.jsonl", [{"image": "a.png", "conversations": llava("?", "x")}]
    )
    assert inspected(mmchat, "data", "--images", "coco")["pictures"] == 1
    assert "a.png does not exist" in inspected(mmchat, "data", status=1)["problems"][0]["why"]


def test_what_looks_wrong_is_remarked_on(mmchat: Run, birds: Path) -> None:
    (birds / "owl" / "00.png").write_bytes((birds / "red_kite" / "00.png").read_bytes())
    for number in range(3):
        (birds / "barn_owl" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(90))
    (birds / "wren").mkdir()
    (birds / "wren" / "IMG_9.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(90))
    (birds / "films").mkdir()
    (birds / "films" / "1.mov").write_bytes(b"x")
    found = inspected(mmchat, "birds", "--allow-bad")
    assert found["bad_classes"] == {"barn owl": 3, "wren": 1} and found["bad"] == 4
    assert found["problems"][0]["why"] == (
        "the picture IMG_0.HEIC has the format HEIC, which is not read: save it as PNG or JPEG"
    )
    assert found["remarks"] == [
        "birds/films has no pictures (1 .mov), so it is not a class.",
        "The class wren is not learned: its only picture cannot be used.",
        (
            "One picture has two different answers to the same question, and all are learned: "
            "birds/owl/00.png is “owl”, birds/red_kite/00.png is “red kite”."
        ),
    ]
    done = mmchat("data", "inspect", "birds", **NO_MODEL)
    assert all(remark in done.stdout for remark in found["remarks"])
    assert sentence(done) == (
        "4 of 124 samples of birds cannot be used: correct them, or skip them with --allow-bad."
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["SAMPLES", "HELD", "OUT", "BAD", "KIND"] in rows and ["0", "0", "1", "wren"] in rows


def test_a_line_end_in_a_name_stays_on_its_line(mmchat: Run, birds: Path) -> None:
    for name in ("a\nb.png", "c\nd.png"):
        (birds / "owl" / name).write_bytes((birds / "owl" / "07.png").read_bytes())
    (birds / "owl" / "e\nf.png").write_bytes(b"broken")
    done = mmchat("data", "inspect", "birds", **NO_MODEL)
    assert "/owl/a b.png = " in done.stdout.partition("the same picture:")[2].splitlines()[2]
    assert "  birds/owl/e f.png: the picture e f.png is not a picture" in done.stdout
    for line in done.stdout.splitlines():
        assert not line.startswith(("b.png", "d.png", "f.png"))


def test_a_picture_that_the_model_cannot_read_is_a_problem(mmchat: Run, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "birds", ["kite/a.png", "kite/b.png", "owl/c.png"])
    (folder / "owl" / "thin.png").write_bytes(picture(9, (2, 500)))
    model = tiny.qwen2_vl(tmp_path / "model")
    done = mmchat("data", "inspect", "birds", "--model", str(model))
    problem = "birds/owl/thin.png: the picture thin.png (2 × 500 pixels) has a shape that"
    assert problem in done.stdout and "unreadable  1 sample" in done.stdout
    assert sentence(done).startswith("1 of 4 samples cannot be read by ")
    done = mmchat("data", "inspect", "birds", "--model", str(model), "--json", "--allow-bad")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["tokens"]["counted"] == 3
    assert [one["place"] for one in found["problems"]] == ["birds/owl/thin.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "There is no nowhere: give a file or folder of data."),
        (["empty"], "empty is empty; these are read: LLaVA"),
        (["empty", "--model", "nonsense"], "There is no model nonsense"),
        (["empty", "--images", "nowhere"], "There is no nowhere"),
        (["broken.json"], "broken.json is broken JSON in line 1, column 3"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_what_cannot_be_read_is_one_sentence(
    mmchat: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("[{]")
    assert said in sentence(mmchat("data", "inspect", *arguments, **NO_MODEL))


def test_a_terminal_sees_nothing_that_moves_it(birds: Path) -> None:
    (birds / "evil\x1b]0;x\x07").mkdir()
    (birds / "evil\x1b]0;x\x07" / "a.png").write_bytes(picture(500))
    main, side = pty.openpty()
    done = subprocess.Popen(
        [MMCHAT, "data", "inspect", str(birds)],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**os.environ, **NO_MODEL},
    )
    os.close(side)
    seen = b""
    while True:
        try:
            piece = os.read(main, 65_536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(main)
    assert done.wait() == 0
    assert b"evil" in seen and b"\x1b]" not in seen and b"\x07" not in seen


def count(lengths: list[int]) -> TokenCount:
    return TokenCount("m", 100, 100, lengths, 0, len(lengths), 0, 0, [])


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([5], [(5, 5, 1)]),
        ([1, 9, 10, 11], [(0, 1, 1), (8, 9, 1), (10, 11, 2)]),
        ([74, 78, 82], [(74, 74, 1), (78, 78, 1), (82, 82, 1)]),
        ([100, 2000], [(0, 499, 1), (2000, 2499, 1)]),
    ],
)
def test_a_histogram_has_round_bins(lengths: list[int], bins: list[tuple[int, int, int]]) -> None:
    found = count(lengths).histogram()
    assert [one for one in found if one[2]] == bins
    assert len(found) <= 10 and sum(one[2] for one in found) == len(lengths)


def test_some_of_many_are_evenly_spread() -> None:
    assert spread(list(range(10)), 20) == list(range(10))  # type: ignore[arg-type, comparison-overlap]
    assert spread(list(range(100)), 4) == [0, 25, 50, 75]  # type: ignore[arg-type, comparison-overlap]
