"""A branch of the history as the turns that the engine is asked with. No widgets here."""

from collections.abc import Callable, Sequence

from mmchat.client.protocol import ImagePart, Turn, place_pictures
from mmchat.history import History, Message

TOO_LONG = "too_long"
"""Stands in the parameters of an answer whose question had no room in the model."""


def turns(branch: Sequence[Message], system: str, image_data: Callable[[str], bytes]) -> list[Turn]:
    """The conversation up to its last user message, pictures at their marks.

    Answers without a word (failed, stopped at once) are left out, and user
    messages that then follow each other become one turn: chat templates want
    the roles to take turns. A message that was too long for the model is left
    out too, or every later one would be too long with it.
    """
    made: list[Turn] = []
    if system.strip():
        made.append(Turn("system", (system,)))
    too_long = {one.parent_id for one in branch if one.origin and TOO_LONG in one.origin.parameters}
    for message in branch:
        if message.id in too_long:
            continue
        if message.role == "assistant":
            if message.text.strip():
                made.append(Turn("assistant", (message.text,)))
            continue
        images = [
            ImagePart(sha256=image.sha256, mime=image.mime, data=image_data(image.sha256))
            for image in message.images
        ]
        parts = place_pictures(message.text, images)
        if made and made[-1].role == "user":
            made[-1] = Turn("user", (*made[-1].parts, "\n\n", *parts))
        else:
            made.append(Turn("user", parts))
    return made


def path_to(history: History, conversation_id: int, message_id: int) -> list[Message]:
    """The messages from the first one to `message_id`, whichever branch is shown."""
    branch = history.branch(conversation_id)
    for place, message in enumerate(branch):
        if message.id == message_id:
            return branch[: place + 1]
    path: list[Message] = []
    at: int | None = message_id
    while at is not None:
        path.append(history.message(at))
        at = path[-1].parent_id
    return path[::-1]
