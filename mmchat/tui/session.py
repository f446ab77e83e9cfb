"""One window's place in the history: which conversation, and what is added to it. No widgets."""

import asyncio
from collections.abc import Sequence

from mmchat.history import Conversation, History, Message, StoredImage
from mmchat.images import Picture
from mmchat.tui.asking import Asker, Live


class Session:
    """The open conversation of a window; everything said goes through it into the history.

    Methods raise HistoryError: a full disk, or a conversation that another
    window deleted.
    """

    def __init__(self, history: History, asker: Asker) -> None:
        self.history = history
        self.asker = asker
        self.conversation: Conversation | None = None
        """None until the first message of a new conversation is sent."""
        self.system = asker.settings.generation.system
        """The system prompt of a conversation that is not in the history yet."""

    @property
    def conversation_id(self) -> int | None:
        return self.conversation.id if self.conversation else None

    def start_new(self) -> None:
        """Begin an empty conversation; it enters the history with its first message."""
        self.conversation = None
        self.system = self.asker.settings.generation.system

    def open(self, conversation_id: int) -> list[Message]:
        """Go to a conversation and return the branch that is shown."""
        self.conversation = self.history.conversation(conversation_id)
        return self.history.branch(conversation_id)

    def refresh(self) -> None:
        """Read the open conversation's row again: its title, its head."""
        if self.conversation is not None:
            self.conversation = self.history.conversation(self.conversation.id)

    def live(self) -> list[Live]:
        """The unfinished answers of the open conversation, in the order of asking."""
        return [
            one for one in self.asker.live.values() if one.conversation_id == self.conversation_id
        ]

    async def send(
        self, text: str, pictures: Sequence[Picture], after: Message | None
    ) -> tuple[Message, Message]:
        """Write a message with its pictures, then ask; returns it and its empty answer.

        `after` is the last message that the person sees: a message that
        another window added since does not slip in between.
        """
        said = await asyncio.to_thread(self._write, text, pictures, after)
        live = self.asker.ask(said.conversation_id, said.id)
        self.refresh()
        return said, self.history.message(live.id)

    def _write(self, text: str, pictures: Sequence[Picture], after: Message | None) -> Message:
        if self.conversation is None:
            self.conversation = self.history.new_conversation(system=self.system)
        images = [
            self.history.add_image(
                one.data, mime=one.mime, width=one.width, height=one.height, name=one.name
            ).sha256
            for one in pictures
        ]
        return self.history.add_message(
            self.conversation.id,
            "user",
            text,
            parent_id=after.id if after else None,
            images=images,
        )

    def regenerate(self, message: Message) -> Message:
        """Ask again for `message` (an answer, or a message of the person): a new sibling."""
        parent = message.parent_id if message.role == "assistant" else message.id
        assert parent is not None  # an answer always has its question
        live = self.asker.ask(message.conversation_id, parent)
        self.refresh()
        return self.history.message(live.id)

    def move(self, message: Message, step: int) -> list[Message] | None:
        """Show the sibling before or after: the new branch; None where there is none."""
        siblings = self.history.siblings(message.id)
        places = [place for place, one in enumerate(siblings) if one.id == message.id]
        at = places[0] + step if places else -1
        if not 0 <= at < len(siblings):
            return None
        self.conversation = self.history.set_head(message.conversation_id, siblings[at].id)
        return self.history.branch(message.conversation_id)

    def rename(self, title: str) -> None:
        if self.conversation is not None:
            self.conversation = self.history.rename(self.conversation.id, title)

    def set_system(self, text: str) -> None:
        if self.conversation is None:
            self.system = text
        else:
            self.conversation = self.history.set_system(self.conversation.id, text)

    @property
    def current_system(self) -> str:
        return self.conversation.system if self.conversation else self.system

    def delete(self, conversation_id: int) -> None:
        """Stop its answers, then remove it for good."""
        self.asker.forget(conversation_id)
        self.history.delete(conversation_id)
        if conversation_id == self.conversation_id:
            self.start_new()

    def picture(self, image: StoredImage) -> Picture:
        """A stored picture with its bytes; call it in a thread."""
        return Picture(
            data=self.history.image_data(image.sha256),
            sha256=image.sha256,
            mime=image.mime,
            width=image.width,
            height=image.height,
            name=image.name,
        )
