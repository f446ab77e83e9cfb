"""Folders of pictures, tables, and data that is split already."""

import csv
import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from mmchat.data import Dataset, read_data, read_splits
from mmchat.data.question_wordings import CAPTION, CLASS
from mmchat.errors import DataError
from tests.data.making import (
    chat,
    data_url,
    llava,
    only,
    picture,
    plain,
    write_json,
    write_lines,
    write_pictures,
)


def answers(data: Dataset) -> list[str]:
    return [example.turns[-1].text for example in data.examples]


def test_a_folder_per_class(tmp_path: Path) -> None:
    names = [f"{kind}/{n:02}.png" for kind in ("red_kite", "owl", "deep/er") for n in range(20)]
    folder = write_pictures(tmp_path / "birds", names)
    (folder / "owl" / "Thumbs.db").write_bytes(b"x")
    (folder / ".hidden").mkdir()
    data = read_data(folder)
    assert data.format == "a folder per class" and not data.problems
    assert [example.kind for example in data.examples] == ["deep"] * 20 + ["owl"] * 20 + [
        "red kite"
    ] * 20
    assert answers(data)[-1] == "red kite"
    asked = [example.turns[0].text for example in data.examples]
    assert set(asked) == set(CLASS)
    for number, example in enumerate(data.examples):
        assert example.pictures[0].data == Path(example.place).read_bytes(), number
    (tmp_path / "again").mkdir()
    moved = folder.rename(tmp_path / "again" / "moved")
    assert [example.turns[0].text for example in read_data(moved).examples] == asked
    assert read_data(moved).sha256 == data.sha256


def test_numbers_before_every_class_go(tmp_path: Path) -> None:
    names = ["001.Black_footed_Albatross/a.png", "002.Laysan_Albatross/b.png"]
    data = read_data(write_pictures(tmp_path / "cub", names))
    assert answers(data) == ["Black footed Albatross", "Laysan Albatross"]
    coins = read_data(write_pictures(tmp_path / "coins", ["1_euro/a.png", "2_euro/b.png"]))
    assert answers(coins) == ["1 euro", "2 euro"]


def test_what_lies_beside_the_classes_is_told(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "birds", ["kite/a.png", "owl/b.png", "cover.png"])
    (folder / "owl" / "broken.jpg").write_bytes(b"no picture")
    problems = read_data(folder, allow_bad=True).problems
    assert [Path(problem.place).name for problem in problems] == ["cover.png", "broken.jpg"]
    assert "in none of the class folders" in problems[0].why
    assert "is not a picture, whatever its extension says" in problems[1].why
    assert [problem.about for problem in problems] == ["", "broken"]


def test_one_class_teaches_nothing(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "birds", ["kite/a.png", "kite/b.png"])
    with pytest.raises(DataError, match="has 2 pictures, all in one folder, and nothing that says"):
        read_data(folder)


def test_pictures_with_texts_beside_them(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", [f"{n:02}.png" for n in range(19)] + ["in/a.png"])
    for file in folder.rglob("*.png"):
        file.with_suffix(".txt").write_text(f"\ufeffPhoto {file.stem}.\n", encoding="utf-8")
    data = read_data(folder)
    assert data.format == "pictures with text files" and not data.problems
    assert answers(data)[0] == "Photo 00." and answers(data)[-1] == "Photo a."
    assert {example.turns[0].text for example in data.examples} <= set(CAPTION)
    (folder / "00.txt").unlink()
    (folder / "01.txt").write_bytes(b"\xff")
    (folder / "02.txt").write_text(" \n")
    why = [problem.why for problem in read_data(folder, allow_bad=True).problems]
    assert why == [
        "it has no text file of the same name",
        "01.txt is not UTF-8 text: save it as UTF-8",
        "an answer is empty",
    ]


def test_imagefolder_metadata(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", ["a.png", "in/b.png"])
    rows = [{"file_name": "a.png", "text": "A."}, {"file_name": "in/b.png", "text": "B."}]
    write_lines(folder / "metadata.jsonl", rows)
    data = read_data(folder)
    assert data.format == "imagefolder: pictures with captions" and answers(data) == ["A.", "B."]
    (folder / "metadata.jsonl").unlink()
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerows(
            [
                ["File_Name", "question", "answer", "label"],
                ["a.png", "what digit\nis this?", "It is the digit 3.", "3"],
                [],
                ["in/b.png", "", "", "4"],
                ["a.png", "x"],
                ["a.png", "x", "y", "z", "more"],
            ]
        )
    data = read_data(folder, allow_bad=True)
    assert plain(data.examples[0])[0] == ("user", "<a.png>", "what digit\nis this?")
    assert [example.kind for example in data.examples] == ["3", "4"] and answers(data)[1] == "4"
    assert [problem.place.rpartition("line ")[2] for problem in data.problems] == ["6", "7"]
    assert "5 cells" in data.problems[1].why


def test_several_pictures_in_a_cell(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", ["a.png", "b.png"])
    text = 'file_names,caption\n"[""a.png"", ""b.png""]",[both]\n'
    (folder / "metadata.csv").write_text(text)
    (found,) = read_data(folder).examples
    assert [one.name for one in found.pictures] == ["a.png", "b.png"] and found.turns[
        -1
    ].text == "[both]"


def test_metadata_without_answers_says_what_it_needs(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", ["a.png"])
    (folder / "metadata.csv").write_text("file_name,size\na.png,3\n")
    with pytest.raises(DataError, match="has file_name, size, but needs file_name and text"):
        read_data(folder)


@pytest.mark.parametrize("held", ["validation", "test", "held-out", "val"])
def test_data_that_is_split_already(tmp_path: Path, held: str) -> None:
    names = [
        f"{side}/{kind}/{n}.png" for side in ("train", held) for kind in "ab" for n in range(3)
    ]
    folder = write_pictures(tmp_path / "birds", names)
    train, held_out = read_splits(folder)
    assert held_out is not None
    assert (len(train.examples), len(held_out.examples)) == (6, 6)
    assert all(f"/{held}/" in example.place for example in held_out.examples)
    assert {example.kind for example in train.examples} == {"a", "b"}
    assert len(read_data(folder).examples) == 12
    (folder / "train" / "a" / "0.png").write_bytes((folder / held / "b" / "1.png").read_bytes())
    train, held_out = read_splits(folder)
    assert held_out is not None and len(held_out.examples) == 6
    (problem,) = train.problems
    assert problem.place.endswith("train/a/0.png") and "held-out split has it too" in problem.why
    assert len(train.examples) == 5


def test_another_folder_beside_the_parts_is_no_class(tmp_path: Path) -> None:
    names = [f"{side}/{kind}/{n}.png" for side in ("train", "test") for kind in "ab" for n in "12"]
    folder = write_pictures(tmp_path, [*names, "docs/screens/1.png", "docs/logo/2.png"])
    train, held_out = read_splits(folder)
    assert held_out is not None and not train.problems
    assert answers(train) == answers(held_out) == ["a", "a", "b", "b"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, ["train/1.png", "car/2.png", "bus/3.png"])
    train, held_out = read_splits(folder)
    assert held_out is None and answers(train) == ["bus", "car", "train"]


def test_a_test_part_beside_a_validation_part_is_not_touched(tmp_path: Path) -> None:
    for number, side in enumerate(("train", "val", "test")):
        write_lines(
            tmp_path / f"{side}.jsonl", [{"messages": chat("?", f"{number}{n}")} for n in range(3)]
        )
    train, held_out = read_splits(tmp_path)
    assert held_out is not None
    assert answers(train) == ["00", "01", "02"] and answers(held_out) == ["10", "11", "12"]
    assert len(read_data(tmp_path).examples) == 9


def test_words_of_the_held_out_part_are_not_learned_either(tmp_path: Path) -> None:
    write_lines(tmp_path / "birds_train.jsonl", [{"messages": chat("?", text)} for text in "abc"])
    write_lines(tmp_path / "birds_test.jsonl", [{"messages": chat("?", text)} for text in "cd"])
    train, held_out = read_splits(tmp_path)
    assert held_out is not None and answers(train) == ["a", "b"] and answers(held_out) == ["c", "d"]


def test_data_without_a_part_to_hold_out(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "test.jsonl", [{"messages": chat("?", "a")}])
    train, held_out = read_splits(file)
    assert held_out is None and answers(train) == ["a"]
    folder = write_pictures(tmp_path / "only", ["train/a/1.png", "train/b/2.png"])
    assert read_splits(folder)[1] is None and len(read_splits(folder)[0].examples) == 2


# --- parquet and saved datasets folders


def parquet(file: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    arrow, writer = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(arrow.Table.from_pylist(rows), file, **options)
    return file


def test_parquet_with_bytes_paths_and_names(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": picture(n), "path": f"{n}.png"}, "caption": f"no. {n}"}
        for n in range(70)
    ]
    rows.append({"image": {"bytes": None, "path": "a.png"}, "caption": "a file"})
    data = read_data(parquet(tmp_path / "d.parquet", rows, row_group_size=20))
    assert data.format == "parquet: pictures with captions" and not data.problems
    shown = [pickle.loads(pickle.dumps(example.pictures[0])) for example in data.examples]
    assert all(one.held is None for one in shown)
    order = [3, 69, 2, 3, 4, 21, 55, 0, 69]
    assert [shown[n].data for n in order] == [picture(n) for n in order]
    assert shown[70].name == "a.png" and shown[70].data == picture(0)
    assert data.examples[4].place.endswith("d.parquet, row 5")
    parquet(tmp_path / "d.parquet", rows[:3])
    with pytest.raises(DataError, match=r"changed while it was in use|cannot be read"):
        _ = shown[55].data


def test_a_data_url_in_parquet_is_found_again(tmp_path: Path) -> None:
    rows = [{"image": data_url(picture(n)), "caption": f"no. {n}"} for n in range(3)]
    data = read_data(parquet(tmp_path / "d.parquet", rows))
    assert [one.pictures[0].data for one in data.examples] == [picture(n) for n in range(3)]


def test_parquet_with_conversations_and_raw_bytes(tmp_path: Path) -> None:
    content = [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]
    said = [{"type": "text", "text": "a kite"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": said}]
    rows = [{"images": [picture(1)], "messages": messages}]
    data = read_data(
        parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows).parent.parent
    )
    assert [
        part.data if not isinstance(part, str) else part for part in data.examples[0].turns[0].parts
    ] == [
        picture(1),
        "what?",
    ]


def test_parquet_shards_and_splits(tmp_path: Path) -> None:
    for name, text in (("train-0-of-2", "a"), ("train-1-of-2", "b"), ("test-0-of-1", "c")):
        parquet(tmp_path / "data" / f"{name}.parquet", [{"conversations": llava("?", text)}])
    train, held_out = read_splits(tmp_path)
    assert held_out is not None and answers(train) == ["a", "b"] and answers(held_out) == ["c"]


def save(folder: Path, rows: list[dict[str, Any]], names: list[str], shards: int = 1) -> Path:
    """A folder as `Dataset.save_to_disk` of datasets 5.2 writes it."""
    arrow = importlib.import_module("pyarrow")
    folder.mkdir(parents=True)
    label = {"names": names, "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    table = arrow.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    files = []
    each = len(rows) // shards
    for number in range(shards):
        files.append({"filename": f"data-{number:05}-of-{shards:05}.arrow"})
        part = table.slice(number * each, each)
        file = str(folder / files[-1]["filename"])
        with arrow.OSFile(file, "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part, max_chunksize=7)
    state = {"_data_files": files, "_fingerprint": "0", "_format_columns": None, "_split": None}
    write_json(folder / "state.json", state)
    write_json(folder / "dataset_info.json", {"features": features})
    return folder


def labelled(numbers: range) -> list[dict[str, Any]]:
    return [{"image": {"bytes": picture(n), "path": None}, "label": n % 2} for n in numbers]


def check_saved(data: Dataset) -> None:
    assert data.format == "a saved datasets folder: pictures with labels" and not data.problems
    assert answers(data) == ["red kite", "owl"] * 20 and data.examples[1].kind == "owl"
    shown = [pickle.loads(pickle.dumps(example.pictures[0])) for example in data.examples]
    assert [shown[n].data for n in (39, 0, 20, 19)] == [picture(n) for n in (39, 0, 20, 19)]


def test_saved_datasets_folders(tmp_path: Path) -> None:
    names = ["red_kite", "owl"]
    check_saved(read_data(save(tmp_path / "one", labelled(range(40)), names, shards=2)))
    for side, numbers in (("train", range(30)), ("test", range(30, 40))):
        save(tmp_path / "both" / side, labelled(numbers), names)
    write_json(tmp_path / "both" / "dataset_dict.json", {"splits": ["train", "test"]})
    train, held_out = read_splits(tmp_path / "both")
    assert held_out is not None and (len(train.examples), len(held_out.examples)) == (30, 10)


def test_what_the_library_itself_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="not needed to read what it writes")
    datasets.disable_progress_bars()
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["red_kite", "owl"])
    )
    whole = datasets.Dataset.from_list(labelled(range(40)), features=features)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    check_saved(read_data(tmp_path / "one"))
    both = datasets.DatasetDict(train=whole.select(range(30)), test=whole.select(range(30, 40)))
    both.save_to_disk(tmp_path / "both")
    train, held_out = read_splits(tmp_path / "both")
    assert held_out is not None and (len(train.examples), len(held_out.examples)) == (30, 10)
    whole.to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    assert answers(read_data(tmp_path / "parquet")) == ["red kite", "owl"] * 20


def test_files_that_say_the_sides_beat_folders_of_that_name(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["train/train.png", "val/val.png"])
    for side in ("train", "val"):
        line = {"image": f"{side}/{side}.png", "conversations": llava("?", side)}
        write_json(tmp_path / f"{side}.json", [line])
    train, held_out = read_splits(tmp_path)
    assert held_out is not None and answers(train) == ["train"] and answers(held_out) == ["val"]


def test_where_arrow_is_missing_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parquet(tmp_path / "d.parquet", [{"conversations": llava("?", "a")}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'mmchat\[datasets\]'"):
        read_data(file)


def test_a_table_of_other_columns_says_which(tmp_path: Path) -> None:
    file = parquet(tmp_path / "d.parquet", [{"speed": 3, "image": b"x"}])
    with pytest.raises(DataError, match="has speed, image; these are read"):
        read_data(file)


def test_rows_of_a_table_can_be_bad(tmp_path: Path) -> None:
    rows = [
        {"image": picture(1), "label": "kite"},
        {"image": b"x", "label": "owl"},
        {"image": None, "label": "x"},
    ]
    data = read_data(parquet(tmp_path / "d.parquet", rows), allow_bad=True)
    assert [problem.place.rpartition(" ")[2] for problem in data.problems] == ["2", "3"]
    assert (
        "is not a picture" in data.problems[0].why
        and "neither a picture nor a question" in data.problems[1].why
    )


def test_a_data_file_beats_classes_only_where_it_is_data(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "birds", ["kite/a.png", "owl/b.png"])
    write_json(folder / "classes.json", {"kite": 0, "owl": 1})
    (folder / "labels.csv").write_text("id,breed\n1,kite\n")
    assert read_data(folder).format == "a folder per class"
    write_json(folder / "llava.json", [{"image": "kite/a.png", "conversations": llava("?", "x")}])
    assert only(read_data(folder))[1] == ("assistant", "x")
