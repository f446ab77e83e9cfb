"""How fast the history is at 100,000 messages: a table, never a verdict.

    python tests/benchmarks/bench_history.py [--messages 100000] [--file PATH]

With --file the filled history is kept and used again.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mmchat.history import History, Origin

REPEATS = 100
_SYLLABLES = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
_CHARACTERS = "的一是不了人我在有他这中大来上国和说图红色圆形左右边上下东京北京都庁見"
_COMMON = ["the", "a", "is", "red", "circle", "of", "and", "left", "picture", "what"]


def words(rng: random.Random, count: int) -> str:
    """Text with a few very common words and a long tail, as people's text has."""
    parts = []
    for _ in range(count):
        if rng.random() < 0.4:
            parts.append(rng.choice(_COMMON))
        else:
            parts.append("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))))
    return " ".join(parts)


def text(rng: random.Random, number: int) -> str:
    if number % 5 == 0:
        return "".join(rng.choices(_CHARACTERS, k=rng.randint(10, 120)))
    rare = f" rare{number}" if number % 100 == 1 else ""
    return words(rng, rng.choice([8, 12, 20, 60, 150])) + rare


def fill(history: History, messages: int) -> None:
    """Conversations of 20 messages on average, by the same door as the app's."""
    rng = random.Random(1)
    number = 0
    while number < messages:
        conversation = history.new_conversation().id
        for turn in range(min(rng.randint(2, 38), messages - number)):
            role = "assistant" if turn % 2 else "user"
            origin = Origin("scenes", parameters={"seed": number}) if turn % 2 else None
            history.add_message(conversation, role, text(rng, number), origin=origin)
            number += 1


def measure(name: str, call: Callable[[int], object], repeats: int = REPEATS) -> None:
    times = []
    for number in range(repeats):
        start = time.perf_counter()
        call(number)
        times.append((time.perf_counter() - start) * 1_000)
    times.sort()
    p50, p95 = times[len(times) // 2], times[int(len(times) * 0.95)]
    print(f"{name:<44}{repeats:>6}{p50:>10.2f}{p95:>10.2f}", flush=True)


def report(path: Path, messages: int) -> None:
    rng = random.Random(2)

    def open_and_close(_: int) -> None:
        History.open(path).close()

    def in_a_process(_: int) -> None:
        script = "import sys, pathlib; from mmchat.history import History;"
        script += "History.open(pathlib.Path(sys.argv[1])).conversations()"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)

    print(f"{'milliseconds':<44}{'n':>6}{'p50':>10}{'p95':>10}")
    measure("open", open_and_close)
    measure("a process: start, open, list", in_a_process, 20)
    with History.open(path) as history:
        ids = [c.id for c in history.conversations(limit=100_000)]
        measure("list 200 conversations", lambda _: history.conversations(200))
        measure("read a branch", lambda _: history.branch(rng.choice(ids)))
        found = len(history.search("the", 20))
        measure(f"search: most common word ({found} shown)", lambda _: history.search("the"))
        measure("search: two common words", lambda _: history.search("red circle"))
        measure(
            "search: rare word",
            lambda _: history.search(f"rare{rng.randrange(messages // 100) * 100 + 1}"),
        )
        measure("search: no such word", lambda _: history.search("zzzzzz"))
        for prefix in ("b", "ba", "bab", "babe"):
            measure(f"search: beginning {prefix!r}", lambda _, p=prefix: history.search(p))
        for part in ("东", "东京", "存在", "东京北", "不存在", "图 圆"):
            measure(f"search: part {part!r}", lambda _, p=part: history.search(p))
        conversation = history.new_conversation().id
        measure(
            "insert a message", lambda n: history.add_message(conversation, "user", text(rng, n))
        )
        answer = history.begin_answer(conversation, origin=Origin("scenes"))
        measure("append a chunk", lambda _: answer.append("ten letters"), 1_600)
        measure("finish it (1,600 chunks)", lambda _: answer.finish(), 1)
        picture = rng.randbytes(3_000_000)
        measure(
            "add a picture of 3 MB",
            lambda n: history.add_image(
                picture + bytes([n]), mime="image/png", width=1, height=1, name="a.png"
            ),
            20,
        )
        measure("delete a conversation", lambda n: history.delete(ids[n]), 50)
        print({k: v for k, v in history.stats().items() if k.endswith(("messages", "bytes"))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.file or Path(folder) / "history.db"
        if not path.exists():
            start = time.perf_counter()
            with History.open(path) as history:
                fill(history, given.messages)
            seconds = time.perf_counter() - start
            print(f"filled {given.messages} messages in {seconds:.0f} s")
        report(path, given.messages)


if __name__ == "__main__":
    main()
