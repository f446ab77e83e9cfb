"""Selects the training examples in a history: the answers that the user approved, with context.

Of an answer and its corrections, only the final version counts: the newest correction that was
not rated as bad or, if there is none, the answer itself if it was rated as good. The others are
never trained on, and in the context of a later answer, the final version replaces them.

An answer that was rated as bad and never corrected is removed from the context, too. If the
message after it has a picture, the context starts there. Otherwise that message probably refers
to what came before ("no, look at the tail"), so only the bad answer is removed, and the two
questions become one turn, as with an empty answer (turns.py).
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence

from mmchat.history import rows
from mmchat.history.types import Conversation, Message, TrainingExample

_OF_CONVERSATION = "m.conversation_id = ?"


def training_examples(
    connection: sqlite3.Connection,
    is_gone: Callable[[str], bool],
    ratings: Collection[str],
    since: float,
    until: float,
    conversations: Collection[int],
    tags: Collection[str],
) -> list[TrainingExample]:
    """The examples with one of `ratings` (`good`, `corrected`), in the order of conversations."""
    found: list[TrainingExample] = []
    with_feedback = rows.conversations(
        connection,
        "WHERE c.id IN (SELECT m.conversation_id FROM message m WHERE m.id IN"
        " (SELECT message_id FROM rating UNION SELECT message_id FROM correction)) ORDER BY c.id",
        (),
    )
    for conversation in with_feedback:
        if conversations and conversation.id not in conversations:
            continue
        if tags and not set(tags) & set(conversation.tags):
            continue
        messages = rows.messages(connection, _OF_CONVERSATION, (conversation.id,), is_gone)
        found += (
            example
            for example in find_examples(conversation, messages)
            if _kinds(example.answer) & set(ratings) and since <= example.when < until
        )
    return found


def find_examples(
    conversation: Conversation, messages: Sequence[Message]
) -> Iterator[TrainingExample]:
    """Yields the examples of a conversation. `messages` are all of its messages, in order of id."""
    by_id = {message.id: message for message in messages}
    final_versions = _final_versions(messages)
    for message in messages:
        if message.role != "assistant" or message.rating == "bad":
            continue
        if final_versions.get(message.id, message) is not message or not _kinds(message):
            continue
        written = message.created if message.corrects is not None else None
        when = max(moment for moment in (written, message.rated) if moment is not None)
        context = _context(_path(message, by_id), final_versions)
        yield TrainingExample(
            "good" if message.corrects is None else "corrected",
            when,
            conversation,
            (*context, message),
        )


def _kinds(message: Message) -> set[str]:
    kinds = set() if message.corrects is None else {"corrected"}
    return kinds | ({"good"} if message.rating == "good" else set())


def _final_versions(messages: Sequence[Message]) -> dict[int, Message]:
    """The final version of every corrected answer and every correction, by message id.

    If all corrections are bad, it is the answer itself.
    """
    root: dict[int, int] = {}
    last: dict[int, Message] = {message.id: message for message in messages}
    for message in messages:  # a correction comes after what it corrects
        if message.corrects is not None:
            root[message.id] = root.get(message.corrects, message.corrects)
            if message.rating != "bad":
                last[root[message.id]] = message
    corrected = set(root.values())
    return {one: last[root.get(one, one)] for one in (*root, *corrected)}


def _path(message: Message, by_id: dict[int, Message]) -> list[Message]:
    """The messages before `message`, from the first one on."""
    path: list[Message] = []
    at = message.parent_id
    while at is not None:
        path.append(by_id[at])
        at = path[-1].parent_id
    return path[::-1]


def _context(path: Sequence[Message], final_versions: dict[int, Message]) -> list[Message]:
    """`path` with final versions, and without bad answers."""
    context = [final_versions.get(message.id, message) for message in path]
    for place in range(len(context) - 1, -1, -1):
        if context[place].rating == "bad":
            following = context[place + 1 : place + 2]
            if following and following[0].images:
                return context[place + 1 :]
            del context[place]
    return context
