"""A writer that never stops, to be killed: says on stdout what it has been promised.

opening             the next call is History.open
begun ID            an answer began
chunk ID N          chunks 0..N of answer ID are safe
done ID N STATE     answer ID ended with N chunks
said ID             a message of the person is safe, with its picture
good ID             a rating of answer ID is safe
corrected ID BY     message BY is safe, which corrects answer ID
tagged ID NAME      the tag NAME of conversation ID is safe
"""

import hashlib
import random
import sys
from pathlib import Path

from mmchat.history import History, Origin


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def chunk(message_id: int, number: int) -> str:
    """What chunk `number` of an answer says: varied, and known to whoever checks."""
    return f"{message_id}:{number} " + hashlib.sha256(f"{message_id}.{number}".encode()).hexdigest()


def main(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    say("opening")
    history = History.open(path)
    conversation = history.new_conversation("written").id
    while True:
        data = rng.randbytes(rng.randrange(1, 20_000))
        image = history.add_image(data, mime="image/png", width=1, height=1, name="a.png")
        said = history.add_message(
            conversation, "user", f"said {image.sha256}", images=[image.sha256]
        )
        say("said", said.id)
        answer = history.begin_answer(conversation, origin=Origin("scripted"))
        say("begun", answer.id)
        length = rng.randrange(200)
        for number in range(length):
            answer.append(chunk(answer.id, number))
            say("chunk", answer.id, number)
        state = answer.finish(rng.choice(["complete", "stopped", "length"])).state
        say("done", answer.id, length, state)
        history.rate(answer.id, "good")
        say("good", answer.id)
        corrected = history.correct(answer.id, f"not {answer.id}")
        say("corrected", answer.id, corrected.id)
        history.tag(conversation, f"tag-{answer.id}")
        say("tagged", conversation, f"tag-{answer.id}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
