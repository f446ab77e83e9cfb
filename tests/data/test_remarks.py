"""What in folders looks wrong: told as a remark, or as the reason why nothing can be learned."""

from pathlib import Path

import pytest

from mmchat.data import read_data, read_splits
from mmchat.errors import DataError
from tests.data.making import llava, picture, write_lines, write_pictures

HEIC = b"\0\0\0\x18ftypheic" + bytes(100)


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        read_data(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_inside_of_classes_are_told_with_the_folder_to_name(tmp_path: Path) -> None:
    names = ["birds/kite/1.png", "birds/wren/2.png", "mammals/cat/3.png", "mammals/dog/4.png"]
    folder = write_pictures(tmp_path / "animals", names)
    data = read_data(folder)
    assert {example.kind for example in data.examples} == {"birds", "mammals"}
    for remark, kind, inner in zip(
        data.remarks, ("birds", "mammals"), ("kite and wren", "cat and dog"), strict=True
    ):
        assert remark == (
            f"The folders {inner} in {folder}/{kind} are learned as one class, {kind}: give "
            f"{folder}/{kind} to use them as classes."
        )
    assert not read_data(folder / "birds").remarks
    assert read_splits(folder)[0].remarks == data.remarks


def test_classes_that_lie_deeper_are_told_with_their_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", [f"all/birds/{k}/1.png" for k in ("kite", "wren")])
    assert refused(folder) == (
        f"{folder} has 2 pictures, all below {folder}/all/birds: give that folder to use its "
        "folders (kite and wren) as classes."
    )
    assert len(read_data(folder / "all" / "birds").examples) == 2


def test_splits_inside_of_classes_are_told(tmp_path: Path) -> None:
    names = [f"{kind}/{split}/{kind}{split}.png" for kind in "ab" for split in ("train", "test")]
    (remark,) = read_data(write_pictures(tmp_path / "d", names)).remarks
    assert "test and train in" in remark and "put them above the classes, such as test/a" in remark


def test_a_class_of_which_nothing_can_be_used_is_told(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "d", [f"kite/{n}.png" for n in range(6)])
    (folder / "owl").mkdir()
    for number in range(6):
        (folder / "owl" / f"IMG_{number}.HEIC").write_bytes(HEIC)
    said = refused(folder)
    assert said.startswith(f"6 of 12 samples of {folder} cannot be used ({folder}/owl/IMG_0.HEIC: ")
    assert said.endswith("The class owl is not learned: none of its 6 pictures can be used.")
    assert "has the format HEIC, which is not read: save it as PNG or JPEG" in said
    data = read_data(folder, allow_bad=True)
    assert list(data.remarks) == [
        "The class owl is not learned: none of its 6 pictures can be used."
    ]
    assert {problem.kind for problem in data.problems} == {"owl"}
    (folder / "owl" / "IMG_0.HEIC").write_bytes(picture(99))  # a JPEG or PNG of that name is read
    assert {example.kind for example in read_data(folder, allow_bad=True).examples} == {
        "kite",
        "owl",
    }


@pytest.mark.parametrize(
    "suffix", [".heic", ".HEIF", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".tga", ".ppm", ".dng"]
)
def test_pictures_that_are_not_read_do_not_vanish(tmp_path: Path, suffix: str) -> None:
    folder = write_pictures(tmp_path / "d", ["kite/1.png", "owl/2.png"])
    (folder / "owl" / f"3{suffix}").write_bytes(b"\1\2\3" * 50)
    (problem,) = read_data(folder, allow_bad=True).problems
    assert problem.place.endswith(f"3{suffix}") and "is not a picture" in problem.why


def test_folders_without_pictures_are_told(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "d", ["kite/1.png", "owl/2.png"])
    (folder / "films").mkdir()
    for name in ("1.mov", "2.MOV", "notes"):
        (folder / "films" / name).write_bytes(b"x")
    assert list(read_data(folder).remarks) == [
        f"{folder}/films has no pictures (2 .mov and 1 without a suffix), so it is not a class."
    ]
    for name in ("@eaDir", "__MACOSX", ".thumbnails", "$RECYCLE.BIN"):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(picture(7))
    assert len(read_data(folder).examples) == 2


def test_one_picture_with_several_labels_is_told(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "d", [f"kite/{n}.png" for n in range(6)] + ["wren/7.png"])
    for number in range(6):
        (folder / "wren" / f"{number}.png").write_bytes(picture(number))
    (remark,) = read_data(folder).remarks
    assert remark == (
        "6 pictures have two different answers to the same question, and all are learned: "
        f"{folder}/kite/0.png is “kite”, {folder}/wren/0.png is “wren”."
    )
    rows = [{"image": "kite/0.png", "question": "how many?", "answer": str(n)} for n in (1, 2, 3)]
    (remark,) = read_data(write_lines(folder / "d.jsonl", rows)).remarks
    assert remark.startswith("One picture has several different answers")
    rows = [{"image": "kite/0.png", "captions": ["A kite.", "A red kite."]}]
    assert not read_data(write_lines(folder / "d.jsonl", rows)).remarks
    talk = [
        {"image": "kite/0.png", "conversations": llava("a?", x, "b?", y)} for x, y in ("cd", "ce")
    ]
    assert not read_data(write_lines(folder / "d.jsonl", talk)).remarks


@pytest.mark.parametrize(
    "text",
    ["0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 0.2\n12 .1 .2 .3 .4\n", "3 0.1 0.1 0.9 0.1 0.9 0.9"],
)
def test_labels_of_detectors_are_no_captions(tmp_path: Path, text: str) -> None:
    folder = write_pictures(tmp_path / "d", [f"{number}.png" for number in range(4)])
    for file in folder.glob("*.png"):
        file.with_suffix(".txt").write_text(text)
    (remark,) = read_data(folder).remarks
    assert "consists of numbers" in remark and "boxes for a detector (YOLO)" in remark
    (folder / "0.txt").write_text("A kite.")
    assert not read_data(folder).remarks
    for file in folder.glob("*.txt"):
        file.write_text("7")  # the picture of a digit
    assert not read_data(folder).remarks


def test_boxes_in_other_files_are_told(tmp_path: Path) -> None:
    voc = write_pictures(tmp_path / "voc", ["1.png", "2.png"])
    (voc / "1.xml").write_text("<annotation/>")
    assert "The .xml files beside them look like boxes for a detector" in refused(voc)
    yolo = write_pictures(tmp_path / "yolo", ["images/1.png", "images/2.png"])
    (yolo / "labels").mkdir()
    (yolo / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2")
    assert "The files in labels look like boxes for a detector" in refused(yolo)


def test_texts_are_found_whatever_their_ending_looks_like(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "d", ["A.PNG", "b.png", "c.png"])
    for name in ("a.TXT", "b.png.txt", "c.Caption"):
        (folder / name).write_text(f"Text of {name}.")
    texts = [example.turns[-1].text for example in read_data(folder).examples]
    assert texts == ["Text of a.TXT.", "Text of b.png.txt.", "Text of c.Caption."]
    (folder / "c.Caption").write_text("grün", encoding="utf-16")
    (problem,) = read_data(folder, allow_bad=True).problems
    assert problem.why == "c.Caption is not UTF-8 text: save it as UTF-8"
