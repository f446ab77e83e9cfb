"""Draws the data of the built-in model: scenes, questions and answers.

    python adapters/scenes/draw.py --out DIR --scenes 48000 --seed 1 --workers 2
    python adapters/scenes/draw.py --evaluation --out DIR --per-type 300 --seed 7 --pairs unseen

The first writes a dataset for training (arrays and dialogs), the second an evaluation folder (picture
files and one question per picture). Needs numpy and Pillow; matplotlib adds more fonts. The same options
give the same files, and splits never share random seeds.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import dialogs
import numpy as np
import other
import paint
import writing
from grader import REFUSAL
from PIL import Image
from scene import CHARACTERS, COLOURS, SHAPES, SIZES, Scene, cells, generator, is_unseen, make_scene

GRADER = "scenes"  # answers are graded by grader.py in this folder
CHUNK = 256  # pictures per task; samples with two pictures take both from one chunk
OTHER_SHARE = 0.12
PICTURES = ("scene", "other")  # the class of a picture, which is a label of each of its cells
TYPES = (
    *dialogs.q.MAKERS,
    "followup",
    "compare",
    "greet",
    "nopicture",
    "refuse_picture",
    "refuse_question",
)
UNSEEN_TYPES = tuple(t for t in (*dialogs.q.MAKERS, "followup") if t != "read")
# The types for pictures with nothing in them; the others need two things.
EMPTY_TYPES = tuple(t for t in dialogs.q.MAKERS if t not in ("relation", "bigger", "order"))


def _sample(images: list[int], of_pictures: list[dialogs.Dialog]) -> dict[str, object]:
    lines = [{"type": d.type, "messages": d.messages()} for d in of_pictures]
    return {"images": images, "dialogs": lines}


def make_chunk(start: int, split: str, seed: int, total: int, out: Path) -> list[dict[str, object]]:
    """Writes pictures `start` to `start + CHUNK` into the arrays; returns their samples."""
    images = np.lib.format.open_memmap(out / "images.npy", mode="r+")
    labels = np.lib.format.open_memmap(out / "cells.npy", mode="r+")
    samples: list[dict[str, object]] = []
    scenes: dict[int, Scene] = {}
    for index in range(start, min(start + CHUNK, total)):
        rng = generator(split, seed, index)
        scene = make_scene(rng)
        if rng.random() < OTHER_SHARE:
            images[index] = paint.model_input(other.make_picture(rng))
            labels[index, ..., -1] = PICTURES.index("other") + 1
            samples.append(_sample([index], dialogs.about_other(scene, rng)))
            continue
        scenes[index] = scene
        images[index] = paint.model_input(paint.paint(scene))
        labels[index, ..., :-1] = cells(scene)
        labels[index, ..., -1] = PICTURES.index("scene") + 1
        samples.append(_sample([index], dialogs.about_scene(scene, rng)))
    if len(scenes) > 1:
        rng = generator(split + "/more", seed, start)
        numbers = list(scenes)
        for _ in range(round(0.15 * len(scenes))):
            pair = rng.sample(numbers, 2)
            two = (scenes[pair[0]], scenes[pair[1]])
            samples.append(_sample(pair, dialogs.about_two(two, rng)))
        for _ in range(round(0.12 * len(scenes))):
            pair = rng.sample(numbers, 2)
            used, kind, messages = dialogs.later_pictures((scenes[pair[0]], scenes[pair[1]]), rng)
            dialog = {"type": kind, "messages": messages}
            samples.append({"images": pair[:used], "dialogs": [dialog]})
        for _ in range(round(0.06 * len(scenes))):
            texts = [_text_only(scenes[rng.choice(numbers)], rng) for _ in range(6)]
            samples.append(_sample([], texts))
    images.flush()
    labels.flush()
    return samples


def _text_only(scene: Scene, rng: random.Random) -> dialogs.Dialog:
    draw = rng.random()
    if draw < 0.4:
        return dialogs.refuse_question(rng, False)
    return dialogs.greet(rng) if draw < 0.6 else dialogs.nopicture(scene, rng)


def _sha256() -> str:
    """One hash of all scripts that make the data."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _write_card(out: Path, **fields: object) -> None:
    fonts = [Path(name).stem or "Pillow" for name in writing.font_names()]
    card = {**fields, "fonts": fonts, "script_sha256": _sha256()}
    (out / "data.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def write_dataset(out: Path, split: str, seed: int, total: int, workers: int) -> Counter[str]:
    """Writes images.npy, cells.npy, classes.json, samples.jsonl, data.json; -> number of dialogs by type."""
    out.mkdir(parents=True, exist_ok=True)
    shapes = {"images.npy": (total, 128, 128, 3), "cells.npy": (total, 16, 16, 6)}
    for name, shape in shapes.items():
        np.lib.format.open_memmap(out / name, mode="w+", dtype=np.uint8, shape=shape).flush()
    classes = {
        "colour": COLOURS,
        "shape": SHAPES,
        "size": SIZES,
        "character": CHARACTERS,
        "centre": ("centre",),
        "picture": PICTURES,
    }
    (out / "classes.json").write_text(json.dumps(classes) + "\n", encoding="utf-8")
    work = partial(make_chunk, split=split, seed=seed, total=total, out=out)
    starts = range(0, total, CHUNK)
    counts: Counter[str] = Counter()
    samples = 0
    pool = multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else _SerialPool()
    with pool, (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for done, chunk in enumerate(pool.imap(work, starts), 1):
            for sample in chunk:
                file.write(json.dumps(sample, ensure_ascii=False, separators=(",", ":")) + "\n")
                counts.update(dialog["type"] for dialog in sample["dialogs"])
            samples += len(chunk)
            if done % 20 == 0 or done == len(starts):
                print(f"{min(done * CHUNK, total)} of {total} pictures", file=sys.stderr)
    fields = {"split": split, "seed": seed, "pictures": total, "samples": samples}
    _write_card(out, **fields, dialogs=dict(sorted(counts.items())))
    return counts


class _SerialPool:
    """Does a pool's work in this process."""

    imap = staticmethod(map)

    def __enter__(self) -> "_SerialPool":
        return self

    def __exit__(self, *_: object) -> None:
        return None


def make_question(
    kind: str, unseen: bool, seed: int, index: int, empty: bool = False
) -> tuple[list[Image.Image], dialogs.Dialog]:
    """A new question of a type with its new pictures, at their native size.

    empty: nothing is drawn on the background, and the answer says so.
    """
    scenes = "empty" if empty else "unseen" if unseen else "seen"
    rng = generator(f"evaluation/{scenes}/{kind}", seed, index)
    if kind == "greet":
        return [], dialogs.greet(rng)
    if kind == "refuse_picture":
        text = dialogs.any_question(make_scene(rng), rng)
        turn = (text, REFUSAL)
        return [other.make_picture(rng)], dialogs.Dialog(kind, [turn], kind, REFUSAL)
    while True:
        scene = make_scene(rng, unseen, evaluation=True)
        if unseen and not is_unseen(scene):
            continue
        if empty:
            scene.things, scene.writing = [], None
        if kind == "nopicture":
            return [], dialogs.nopicture(scene, rng)
        if kind == "refuse_question":
            return [paint.paint(scene)], dialogs.refuse_question(rng, True)
        if kind == "compare":
            second = make_scene(rng, evaluation=True)
            return [paint.paint(scene), paint.paint(second)], dialogs.compare((scene, second), rng)
        if kind == "read" and scene.writing is None and not empty and rng.random() < 0.96:
            continue
        focus = scene.things[0] if unseen else None
        dialog = dialogs.ask(kind, scene, rng, focus)
        if dialog is not None:
            return [paint.paint(scene)], dialog


def _control_pictures(
    pictures: list[Image.Image], control: str, rng: random.Random
) -> list[Image.Image]:
    """Blank pictures of the same sizes, or pictures of other scenes."""
    if control == "blank":
        grey = rng.choice((255, 255, 240, 20, 0))
        return [Image.new("RGB", picture.size, (grey, grey, grey)) for picture in pictures]
    return [paint.paint(make_scene(rng, evaluation=True)) for _ in pictures]


def write_evaluation(
    out: Path, seed: int, per_type: int, unseen: bool, control: str, types: list[str]
) -> int:
    """Writes pictures/ and questions.jsonl; -> the number of questions."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    number = questions = 0
    with (out / "questions.jsonl").open("w", encoding="utf-8") as file:
        for kind in types:
            for index in range(per_type):
                pictures, dialog = make_question(kind, unseen, seed, index, control == "empty")
                rng = generator(f"evaluation/file/{unseen}/{kind}/{control}", seed, index)
                if control in ("blank", "swapped"):
                    pictures = _control_pictures(pictures, control, rng)
                names = []
                for picture in pictures:
                    number += 1
                    suffix = "jpg" if rng.random() < 0.3 else "png"
                    names.append(f"pictures/{number:06d}.{suffix}")
                    picture.save(out / names[-1], quality=rng.randint(70, 92))
                questions += 1
                line = {
                    "id": f"{kind}-{index + 1:04d}",
                    "type": kind,
                    "group": dialog.group,
                    "choice": dialog.choice,
                    "images": names,
                    "messages": dialog.messages(last=False),
                    "answer": dialog.turns[-1][1],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    fields = {"grader": GRADER, "seed": seed, "per_type": per_type, "types": types}
    _write_card(
        out, **fields, control=control, pairs="unseen" if unseen else "seen", questions=questions
    )
    return questions


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=80_000, help="pictures of the dataset")
    parser.add_argument("--split", default="train", help="a name; each has its own random seeds")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--evaluation", action="store_true", help="write an evaluation folder")
    parser.add_argument("--per-type", type=int, default=300)
    parser.add_argument("--pairs", choices=("seen", "unseen"), default="seen")
    parser.add_argument("--control", choices=("none", "blank", "swapped", "empty"), default="none")
    parser.add_argument("--types", default="", help="only these types, separated by commas")
    options = parser.parse_args(argv)
    if options.scenes < 1 or options.per_type < 1 or options.seed < 0 or options.workers < 1:
        parser.error("--scenes, --per-type and --workers must be 1 or more, --seed 0 or more")
    if options.split.startswith("evaluation"):
        parser.error("--split cannot begin with 'evaluation', whose seeds belong to --evaluation")
    if not options.evaluation:
        counts = write_dataset(
            options.out, options.split, options.seed, options.scenes, options.workers
        )
        print(json.dumps(dict(sorted(counts.items()))))
        return
    unseen = options.pairs == "unseen"
    known = UNSEEN_TYPES if unseen else EMPTY_TYPES if options.control == "empty" else TYPES
    types = options.types.split(",") if options.types else list(known)
    if bad := set(types) - set(known):
        parser.error(f"unknown types: {', '.join(sorted(bad))}; choose from {', '.join(known)}")
    count = write_evaluation(
        options.out, options.seed, options.per_type, unseen, options.control, types
    )
    print(f"{count} questions in {options.out / 'questions.jsonl'}")


if __name__ == "__main__":
    main()
