"""What a person does with conversations: send, regenerate, compare, correct, rename, delete."""

from collections.abc import Iterable, Sequence
from functools import partial

from mmchat.chat.answer_queue import AnswerQueue
from mmchat.chat.async_history import AsyncAnswer, AsyncHistory
from mmchat.chat.events import ConversationsChanged, EventHandler, PendingAnswer
from mmchat.chat.origins import requested_origin, with_adapter
from mmchat.chat.prompt import stored_prompt
from mmchat.errors import HistoryError
from mmchat.history import Conversation, History, Message, Origin, Rating, StoredImage
from mmchat.images import Picture
from mmchat.settings import Settings


class ConversationService:
    """The open conversation of one window, and everything that is done with it.

    Methods raise HistoryError: the disk is full, the file is locked, or another window deleted the
    conversation. They emit `ConversationsChanged` after each change.
    """

    def __init__(self, history: AsyncHistory, answers: AnswerQueue, emit: EventHandler) -> None:
        self.history = history
        self.answers = answers
        self.conversation: Conversation | None = None
        """None until the first message of a new conversation is sent."""
        self._new_system = answers.settings.generation.system
        """The system prompt of a conversation that is not in the history yet."""
        self._emit = emit

    # The open conversation

    @property
    def conversation_id(self) -> int | None:
        return self.conversation.id if self.conversation else None

    @property
    def system(self) -> str:
        """The system prompt of the open conversation."""
        return self.conversation.system if self.conversation else self._new_system

    def pending(self) -> list[PendingAnswer]:
        """The pending answers of the open conversation, in the order in which they were asked for."""
        return [
            answer
            for answer in self.answers.pending.values()
            if answer.conversation_id == self.conversation_id
        ]

    def start_new(self) -> None:
        """Begin an empty conversation; the history gets it with its first message."""
        self._new_system = self.answers.settings.generation.system
        self._set_open(None)

    async def open(self, conversation_id: int) -> list[Message]:
        """Open a conversation and return the branch that is shown."""
        conversation = await self.history.conversation(conversation_id)
        branch = await self.history.branch(conversation_id)
        self._set_open(conversation)
        return branch

    async def open_at(self, conversation_id: int, message_id: int) -> list[Message]:
        """Open a conversation at the branch through a message, and return that branch."""
        branch = await self.history.branch(conversation_id)
        if all(message.id != message_id for message in branch):
            await self.history.set_head(conversation_id, message_id)
        return await self.open(conversation_id)

    async def refresh(self, conversation_id: int | None = None) -> None:
        """Read the open conversation again, or open `conversation_id`, without its messages."""
        wanted = self.conversation_id if conversation_id is None else conversation_id
        if wanted is not None:
            self._set_open(await self.history.conversation(wanted))

    # Messages

    async def send(
        self, text: str, pictures: Sequence[Picture], after: Message | None
    ) -> tuple[Message, Message]:
        """Store a message and ask for its answer; returns both, the answer still empty.

        after: the last message that the person sees. A message that another window added since
        then does not come in between. Call `refresh` afterwards: it opens a new conversation.
        """
        origin = requested_origin(self.answers.settings)
        message, record = await self.history.say(
            self.conversation_id,
            text,
            images=[(stored_image(picture), picture.data) for picture in pictures],
            parent_id=after.id if after else None,
            origin=origin,
            system=self.system,
        )
        self._submit(record, message, origin)
        return message, record.message

    async def regenerate(self, message: Message) -> Message:
        """Ask for another answer; returns it, still empty: a new sibling.

        message: an answer, or a message of the person.
        """
        question = message
        if message.role == "assistant":
            assert message.parent_id is not None  # an answer always has its question
            question = await self.history.message(message.parent_id)
        return await self._ask(question)

    async def compare(
        self, question: Message, first_adapter: str, second_adapter: str
    ) -> tuple[Message, Message]:
        """Ask for two answers with two adapters, one after the other: two new siblings.

        The adapter that is selected for later messages stays the same.
        """
        begun: list[Message] = []
        try:
            for adapter in (first_adapter, second_adapter):
                settings = with_adapter(self.answers.settings, adapter)
                begun.append(await self._ask(question, settings))
        except HistoryError:
            for message in begun:  # one answer alone is not a comparison
                if (answer := self.answers.pending.get(message.id)) is not None:
                    self.answers.stop(answer)
            raise
        finally:
            self.answers.load(silent=True)  # attach the selected adapter again
        # The first one has a sibling by now.
        return await self.history.message(begun[0].id), begun[1]

    async def show_sibling(self, message: Message, step: int) -> list[Message] | None:
        """Open the branch of the answer before (-1) or after (1) `message`; None if there is none."""
        siblings = await self.history.siblings(message.id)
        places = [place for place, sibling in enumerate(siblings) if sibling.id == message.id]
        at = places[0] + step if places else -1
        if not 0 <= at < len(siblings):
            return None
        return await self.open_at(message.conversation_id, siblings[at].id)

    async def correct(self, message_id: int, text: str) -> Message:
        """Store what an answer should have been, as its sibling; returns the correction."""
        correction = await self.history.correct(message_id, text)
        self._emit(ConversationsChanged())
        return correction

    async def toggle_rating(self, message_id: int, rating: Rating) -> Message:
        """Rate an answer; the same rating again removes it."""
        before = await self.history.message(message_id)
        return await self.history.rate(message_id, None if before.rating == rating else rating)

    # Conversations

    async def rename(self, conversation_id: int, title: str) -> None:
        self._replace(await self.history.rename(conversation_id, title))

    async def set_system(self, text: str) -> None:
        """Set the system prompt of the open conversation."""
        if self.conversation is None:
            self._new_system = text
        else:
            self._replace(await self.history.set_system(self.conversation.id, text))

    async def set_tags(self, conversation_id: int, names: Iterable[str]) -> Conversation:
        """Replace the tags of a conversation."""
        return self._replace(await self.history.set_tags(conversation_id, names))

    async def toggle_tag(self, conversation_id: int, name: str) -> Conversation:
        """Add a tag to a conversation; the same tag again removes it."""
        return self._replace(await self.history.run(_toggle_tag, conversation_id, name))

    async def delete(self, conversation_id: int) -> None:
        """Delete a conversation for good, and stop its answers."""
        await self.history.delete(conversation_id)
        self.answers.stop_conversation(conversation_id)
        if conversation_id == self.conversation_id:
            self.start_new()
        else:
            self._emit(ConversationsChanged())

    # Helpers

    def _set_open(self, conversation: Conversation | None) -> None:
        if conversation != self.conversation:
            self.conversation = conversation
            self._emit(ConversationsChanged())

    def _replace(self, changed: Conversation) -> Conversation:
        if changed.id == self.conversation_id:
            self.conversation = changed
        self._emit(ConversationsChanged())
        return changed

    async def _ask(self, question: Message, settings: Settings | None = None) -> Message:
        origin = requested_origin(settings or self.answers.settings)
        record = await self.history.begin_answer(
            question.conversation_id, parent_id=question.id, origin=origin
        )
        self._submit(record, question, origin, settings)
        return record.message

    def _submit(
        self,
        record: AsyncAnswer,
        question: Message,
        origin: Origin,
        settings: Settings | None = None,
    ) -> None:
        prompt = partial(self.history.run, stored_prompt, question.id)
        self.answers.submit(
            PendingAnswer(record, prompt, question.conversation_id, question.id, origin, settings)
        )


def stored_image(picture: Picture) -> StoredImage:
    """A picture as the history describes it, without its bytes."""
    return StoredImage(
        picture.sha256,
        picture.mime,
        picture.width,
        picture.height,
        len(picture.data),
        picture.name,
    )


def load_picture(history: History, image: StoredImage) -> Picture:
    """A picture of the history with its bytes. Blocks: call it in a thread."""
    return Picture(
        data=history.image_data(image.sha256),
        sha256=image.sha256,
        mime=image.mime,
        width=image.width,
        height=image.height,
        name=image.name,
    )


def _toggle_tag(history: History, conversation_id: int, name: str) -> Conversation:
    before = history.conversation(conversation_id).tags
    after = history.tag(conversation_id, name)
    return after if after.tags != before else history.untag(conversation_id, name)
