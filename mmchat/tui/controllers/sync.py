"""What other windows do with the same history, and the list of conversations."""

from mmchat.history import MissingError
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.controllers.conversations import ConversationsController

_LISTED = 200
"""How many conversations are listed at first, and how many more at a time."""


class HistorySync:
    """Shows what is in the history by now: new messages, new conversations, deletions."""

    def __init__(self, context: ChatContext, conversations: ConversationsController) -> None:
        self._context = context
        self._conversations = conversations
        self._limit = _LISTED
        self._sync_enqueued = False
        self._list_enqueued = False

    def sync(self) -> None:
        """Follow what other windows did, and save what could not be saved before."""
        self._context.service.answers.retry_saving()
        if not self._sync_enqueued:
            self._sync_enqueued = True
            self._context.tasks.enqueue(self._sync)

    async def _sync(self) -> None:
        self._sync_enqueued = False
        try:
            # An answer of this window stays on the screen while it is being written.
            await self.sync_messages(only_new=bool(self._context.service.pending()))
        except MissingError:
            self._context.screen.notify(
                "This conversation was deleted in another window.", markup=False
            )
            await self._conversations.open_new()
        await self._load_list()

    async def sync_messages(self, *, only_new: bool) -> None:
        """Show what other windows did in the open conversation.

        only_new: what is on the screen stays, and only messages behind it are added.

        Raises HistoryError; MissingError if the conversation was deleted.
        """
        service, transcript = self._context.service, self._context.transcript
        if service.conversation_id is None:
            return
        branch = await service.open(service.conversation_id)
        if transcript.is_current(branch):
            return
        if not only_new or transcript.is_continued_by(branch):
            await transcript.follow(branch)

    def refresh_list(self) -> None:
        """Read the list of conversations again."""
        if not self._list_enqueued:
            self._list_enqueued = True
            self._context.tasks.enqueue(self._load_list)

    def list_more(self) -> None:
        """Show older conversations as well."""
        self._limit += _LISTED
        self.refresh_list()

    async def _load_list(self) -> None:
        self._list_enqueued = False
        conversations = await self._context.service.history.conversations(self._limit)
        listed = self._context.conversation_list
        listed.has_more = len(conversations) == self._limit
        listed.conversations = tuple(conversations)
