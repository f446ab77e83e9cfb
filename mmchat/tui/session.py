"""One window's place in the history: which conversation, and what is added to it. No widgets."""

import asyncio
from collections.abc import Sequence

from mmchat.errors import HistoryError
from mmchat.history import Conversation, History, Message, StoredImage
from mmchat.images import Picture
from mmchat.tui.asking import Asker
from mmchat.tui.news import Live
from mmchat.tui.origins import with_adapter


class Session:
    """The open conversation of a window; everything said goes through it into the history.

    What reads or writes the file does so in a thread: another program may hold
    it for seconds. Methods raise HistoryError: a full disk, or a conversation
    that another window deleted.
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

    async def open(self, conversation_id: int) -> list[Message]:
        """Go to a conversation and return the branch that is shown."""
        conversation = await asyncio.to_thread(self.history.conversation, conversation_id)
        branch = await asyncio.to_thread(self.history.branch, conversation_id)
        self.conversation = conversation
        return branch

    async def refresh(self, conversation_id: int | None = None) -> None:
        """Read the row of the open conversation, or of one that is open now: its title, its head."""
        wanted = self.conversation_id if conversation_id is None else conversation_id
        if wanted is not None:
            self.conversation = await asyncio.to_thread(self.history.conversation, wanted)

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
        origin = self.asker.origin()
        said, answer = await asyncio.to_thread(
            self.history.say,
            self.conversation_id,
            text,
            images=[(_stored(one), one.data) for one in pictures],
            parent_id=after.id if after else None,
            origin=origin,
            system=self.system,
        )
        self.asker.ask(answer, said, origin)
        return said, answer.begun

    async def regenerate(self, message: Message) -> Message:
        """Ask again for `message` (an answer, or a message of the person): a new sibling."""
        question = message
        if message.role == "assistant":
            assert message.parent_id is not None  # an answer always has its question
            question = await asyncio.to_thread(self.history.message, message.parent_id)
        origin = self.asker.origin()
        answer = await asyncio.to_thread(
            self.history.begin_answer,
            question.conversation_id,
            parent_id=question.id,
            origin=origin,
        )
        self.asker.ask(answer, question, origin)
        return answer.begun

    async def compare(self, question: Message, first: str, second: str) -> tuple[Message, Message]:
        """Ask for `question` with two adapters, one after the other: two new siblings.

        What later questions are asked with stays as it is.
        """
        begun: list[Message] = []
        try:
            for adapter in (first, second):
                settings = with_adapter(self.asker.settings, adapter)
                origin = self.asker.origin(settings)
                answer = await asyncio.to_thread(
                    self.history.begin_answer,
                    question.conversation_id,
                    parent_id=question.id,
                    origin=origin,
                )
                self.asker.ask(answer, question, origin, settings)
                begun.append(answer.begun)
        except HistoryError:
            for one in begun:  # one answer alone compares nothing
                if (live := self.asker.live.get(one.id)) is not None:
                    self.asker.stop(live)
            raise
        finally:
            self.asker.load(quiet=True)  # the adapter that was on before is on again
        # The first one has a sibling by now.
        return await asyncio.to_thread(self.history.message, begun[0].id), begun[1]

    async def move(self, message: Message, step: int) -> list[Message] | None:
        """Show the sibling before or after: the new branch; None where there is none."""
        siblings = await asyncio.to_thread(self.history.siblings, message.id)
        places = [place for place, one in enumerate(siblings) if one.id == message.id]
        at = places[0] + step if places else -1
        if not 0 <= at < len(siblings):
            return None
        return await self.show(message.conversation_id, siblings[at].id)

    async def show(self, conversation_id: int, message_id: int) -> list[Message]:
        """Go to the branch through a message, and return it."""
        branch = await asyncio.to_thread(self.history.branch, conversation_id)
        if all(one.id != message_id for one in branch):
            await asyncio.to_thread(self.history.set_head, conversation_id, message_id)
        return await self.open(conversation_id)

    async def rename(self, conversation_id: int, title: str) -> None:
        renamed = await asyncio.to_thread(self.history.rename, conversation_id, title)
        if conversation_id == self.conversation_id:
            self.conversation = renamed

    async def set_system(self, text: str) -> None:
        if self.conversation is None:
            self.system = text
        else:
            self.conversation = await asyncio.to_thread(
                self.history.set_system, self.conversation.id, text
            )

    @property
    def current_system(self) -> str:
        return self.conversation.system if self.conversation else self.system

    async def delete(self, conversation_id: int) -> None:
        """Remove a conversation for good, then stop its answers."""
        await asyncio.to_thread(self.history.delete, conversation_id)
        self.asker.forget(conversation_id)
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


def _stored(picture: Picture) -> StoredImage:
    return StoredImage(
        picture.sha256,
        picture.mime,
        picture.width,
        picture.height,
        len(picture.data),
        picture.name,
    )
