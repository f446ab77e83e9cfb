"""Messages that were too long for the model."""

from mmchat.chat.service import load_picture
from mmchat.history import Message
from mmchat.tui.controllers.context import ChatContext


class UnsentMessages:
    """Brings a message that was too long back into the input, to be shortened and sent again."""

    def __init__(self, context: ChatContext) -> None:
        self._context = context
        self._messages: dict[int, Message] = {}
        """By conversation."""

    async def add(self, message_id: int) -> None:
        """A message that could not be answered."""
        message = await self._context.service.history.message(message_id)
        self._messages[message.conversation_id] = message
        await self.restore()

    async def restore(self) -> None:
        """Put the message of the open conversation into the input, unless something is there."""
        composer, service = self._context.composer, self._context.service
        message = self._messages.pop(service.conversation_id or 0, None)
        if message is None or composer.input.text or composer.pictures:
            return
        composer.restore(message.text)
        for image in message.images:
            picture = await service.history.run(load_picture, image)
            await composer.add_picture(picture)
