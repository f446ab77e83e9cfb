"""Ask the built-in model about the forty pictures, through the command that a person types.

    python tests/acceptance/run_forty.py [--markdown]

Each row is one `mmchat ask "QUESTION" -a PICTURE --json --no-save`. An answer is right when its
words are: case and punctuation do not count, nor the order of a caption's objects. The exit status
is always 0: this is a measurement, to be read.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("forty")
NUMBERS = {
    word: count
    for count, words in enumerate(
        ("one 1 a an", "two 2", "three 3", "four 4", "five 5", "six 6"), start=1
    )
    for word in words.split()
}


@dataclass(frozen=True)
class Row:
    id: str
    type: str
    question: str
    wanted: str
    given: str
    right: bool


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def caption_items(text: str) -> Counter[str]:
    """ "I see two small green stars and a red heart." -> {"small green star": 2, "red heart": 1}

    A part that does not begin with a number is kept whole, so that it matches nothing.
    """
    found: Counter[str] = Counter()
    plain = " ".join(re.findall(r"\w+|,", text.casefold())).removeprefix("i see ")
    for part in re.split(r" ,|\band\b", plain):
        tokens = part.split()
        if not tokens:
            continue
        count = NUMBERS.get(tokens[0])
        if count is None:
            found[" ".join(tokens)] += 1
            continue
        if count > 1:
            tokens[-1] = "cross" if tokens[-1] == "crosses" else tokens[-1].removesuffix("s")
        found[" ".join(tokens[1:])] += count
    return found


def is_right(kind: str, wanted: str, given: str) -> bool:
    if kind == "caption":
        return caption_items(wanted) == caption_items(given)
    return words(wanted) == words(given)


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
        given = ask(entry["question"], [FOLDER / name for name in entry["images"]])
        rows.append(
            Row(
                id=entry["id"],
                type=entry["type"],
                question=entry["question"],
                wanted=entry["answer"],
                given=" ".join(given.split()),
                right=is_right(entry["type"], entry["answer"], given),
            )
        )
    return rows


def as_markdown(rows: list[Row]) -> str:
    lines = [
        "| picture | type | question | wanted | given | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.id, row.type, row.question, row.wanted, row.given]
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join([*escaped, "right" if row.right else "**wrong**"]) + " |")
    return "\n".join(lines)


def as_text(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        mark = " " if row.right else "✗"
        lines.append(f"{mark} {row.id} {row.type:12} {row.question}")
        lines.append(f"     wanted {row.wanted}")
        lines.append(f"     given  {row.given}")
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
