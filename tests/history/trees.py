"""Random conversations with branches, ratings and corrections, by the doors that the app uses."""

from collections.abc import Sequence

from hypothesis import strategies as st

from mmchat.history import History, Message, MessageState

Step = tuple[str, int, int]
"""What is done, to which of the messages there are (modulo their number), and a choice within it."""

KINDS = ("ask", "show", "answer", "answer", "good", "good", "bad", "correct", "correct", "again")
STATES: tuple[MessageState, ...] = (
    "complete",
    "complete",
    "complete",
    "stopped",
    "length",
    "failed",
)
steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 99), st.integers(0, 9)), max_size=40
)


def grow(history: History, conversation: int, todo: Sequence[Step]) -> list[Message]:
    """All messages of the conversation, after the steps that can be taken, by their ids."""
    pictures = [
        history.add_image(bytes([n]), mime="image/png", width=1, height=1, name=f"{n}.png").sha256
        for n in range(3)
    ]
    ids: list[int] = []
    for number, (kind, which, choice) in enumerate(todo):
        messages = [history.message(one) for one in ids]
        asked = [m.id for m in messages if m.role == "user"]
        answers = [m.id for m in messages if m.role == "assistant"]
        made: Message | None = None
        if kind in ("ask", "show"):
            # Under an answer, mostly the newest; or as another beginning.
            parent = answers[-1 - which % len(answers)] if answers and choice else None
            shown = pictures[: 1 + choice % 3] if kind == "show" else []
            made = history.add_message(
                conversation, "user", f"[1] {number}? [2]", parent_id=parent, images=shown
            )
        elif kind == "answer" and asked:
            made = history.add_message(
                conversation,
                "assistant",
                "" if choice == 9 else f"answer {number}",
                parent_id=asked[-1 - which % len(asked)],
                state=STATES[choice % len(STATES)],
            )
        elif kind in ("good", "bad", "again") and answers:
            rating = {"good": "good", "bad": "bad"}.get(kind)
            history.rate(answers[which % len(answers)], rating)  # type: ignore[arg-type]
        elif kind == "correct" and answers:
            made = history.correct(answers[which % len(answers)], f"corrected {number}")
        if made is not None:
            ids.append(made.id)
    return [history.message(one) for one in ids]
