"""Ask the built-in model about the forty pictures, through the command that a person types.

    python tests/acceptance/run_forty.py [--markdown]

Each row is one `mmchat ask "QUESTION" -a PICTURE --json --no-save`. An answer is right when its
words are: case, punctuation and articles do not count, nor the order of a caption's objects. The
exit status is always 0, because this is a measurement for people to read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mmchat.answer_match import same_words
from mmchat.evaluation.graders import find_grader, grade
from mmchat.evaluation.questions import Question

FOLDER = Path(__file__).with_name("forty")


@dataclass(frozen=True)
class Row:
    id: str
    type: str
    question: str
    reference: str
    prediction: str
    right: bool


def is_right(kind: str, reference: str, prediction: str) -> bool:
    """Captions as `mmchat evaluate` compares them, other answers by their words."""
    if kind != "caption":
        return same_words(prediction, reference)
    question = Question("", kind, [], reference)
    grader = find_grader("scenes")
    assert grader is not None
    return grade(question, prediction, grader).correct


def ask(question: str, pictures: list[Path]) -> str:
    """The answer's text; what the command said on stderr when it gave none."""
    command = [str(Path(sys.executable).with_name("mmchat")), "ask", question]
    for picture in pictures:
        command += ["-a", str(picture)]
    done = subprocess.run(
        [*command, "--json", "--no-save"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"mmchat: exit status {done.returncode}"]
        return f"({said[-1]})"
    return str(json.loads(done.stdout)["text"])


def run() -> list[Row]:
    rows = []
    for line in (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        prediction = ask(entry["question"], [FOLDER / name for name in entry["images"]])
        rows.append(
            Row(
                id=entry["id"],
                type=entry["type"],
                question=entry["question"],
                reference=entry["answer"],
                prediction=" ".join(prediction.split()),
                right=is_right(entry["type"], entry["answer"], prediction),
            )
        )
    return rows


def as_markdown(rows: list[Row]) -> str:
    lines = [
        "| picture | type | question | reference | prediction | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.id, row.type, row.question, row.reference, row.prediction]
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join([*escaped, "right" if row.right else "**wrong**"]) + " |")
    return "\n".join(lines)


def as_text(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        mark = " " if row.right else "✗"
        lines.append(f"{mark} {row.id} {row.type:12} {row.question}")
        lines.append(f"     reference  {row.reference}")
        lines.append(f"     prediction {row.prediction}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask about the forty acceptance pictures.")
    parser.add_argument("--markdown", action="store_true", help="print the table for the card")
    options = parser.parse_args()
    rows = run()
    total = f"{sum(row.right for row in rows)} of {len(rows)} right"
    print(as_markdown(rows) + f"\n\n{total}" if options.markdown else f"{as_text(rows)}\n{total}")


if __name__ == "__main__":
    main()
