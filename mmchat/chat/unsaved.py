"""A question that is answered and not kept in the history: `mmchat ask --no-save`."""

import time
from collections.abc import Sequence
from typing import Literal

from mmchat.chat.events import PendingAnswer
from mmchat.chat.origins import requested_origin
from mmchat.chat.prompt import prompt_turns
from mmchat.chat.service import stored_image
from mmchat.history import Conversation, History, Message, Origin
from mmchat.images import Picture
from mmchat.settings import Settings
from mmchat.turns import ImagePart, Turn


class UnsavedAnswer:
    """An `AnswerRecord` that stores nothing."""

    id = 0

    async def append(self, text: str) -> None:
        pass

    async def finish(self, state: Literal["complete", "length", "stopped"], origin: Origin) -> None:
        pass

    async def fail(self, error: str, origin: Origin) -> None:
        pass


def unsaved_answer(
    settings: Settings,
    text: str,
    pictures: Sequence[Picture],
    system: str,
    history: History | None = None,
    conversation: Conversation | None = None,
) -> PendingAnswer:
    """An answer for `AnswerQueue.submit`.

    history, conversation: what the question follows, if anything; nothing is written there.
    """
    branch = history.branch(conversation.id) if history and conversation else []
    question = Message(
        id=0,
        conversation_id=0,
        parent_id=branch[-1].id if branch else None,
        role="user",
        text=text,
        images=tuple(map(stored_image, pictures)),
        created=time.time(),
        state="complete",
        error="",
        origin=None,
        sibling=1,
        siblings=1,
    )
    new = {picture.sha256: picture.data for picture in pictures}

    async def prompt() -> list[Turn[ImagePart]]:
        def image_data(sha256: str) -> bytes:
            if history is None or sha256 in new:
                return new[sha256]
            return history.image_data(sha256)

        return prompt_turns([*branch, question], system, image_data)

    return PendingAnswer(UnsavedAnswer(), prompt, 0, 0, requested_origin(settings))
