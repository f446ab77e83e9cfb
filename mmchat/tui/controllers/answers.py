"""Messages and answers: sent, streamed, stopped, answered again, copied."""

from functools import partial

from mmchat.chat.events import AnswerChanged, AnswerDelta, AnswerFinished
from mmchat.display.messages import is_too_long
from mmchat.errors import HistoryError
from mmchat.history import Message
from mmchat.sanitize import clean
from mmchat.tui.controllers.comparison import ComparisonController
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.controllers.conversations import ConversationsController
from mmchat.tui.controllers.sync import HistorySync
from mmchat.tui.controllers.unsent import UnsentMessages
from mmchat.tui.widgets.message import MessageView


class AnswersController:
    """Asks, and shows what comes back."""

    def __init__(
        self,
        context: ChatContext,
        conversations: ConversationsController,
        sync: HistorySync,
        comparison: ComparisonController,
        unsent: UnsentMessages,
    ) -> None:
        self._context = context
        self._service = context.service
        self._conversations = conversations
        self._sync = sync
        self._comparison = comparison
        self._unsent = unsent

    # Events of the conversation service

    def handle(self, event: AnswerChanged | AnswerDelta | AnswerFinished) -> None:
        """A task: the messages on the screen may be about to change."""
        self._context.tasks.enqueue(partial(self._handle, event))

    async def _handle(self, event: AnswerChanged | AnswerDelta | AnswerFinished) -> None:
        view = self._context.transcript.view(event.answer.id)
        if view is not None:  # else its conversation is not open
            await self._show(view, event)
        if isinstance(event, AnswerFinished) and event.message and is_too_long(event.message):
            await self._unsent.add(event.answer.question_id)

    async def _show(
        self, view: MessageView, event: AnswerChanged | AnswerDelta | AnswerFinished
    ) -> None:
        match event:
            case AnswerDelta():
                await view.show_more()
            case AnswerChanged():
                view.show_state()
            case AnswerFinished(message=message, error=error):
                await view.finish(message, error)
                if message is not None:
                    self._context.transcript.replace(message)
                    await self._comparison.answer_finished(message)
                    self._sync.refresh_list()

    # Sending

    async def send(self, text: str) -> None:
        """Store the message, ask, and show both."""
        composer, transcript = self._context.composer, self._context.transcript
        try:
            # After what another window has added meanwhile, not beside it.
            await self._sync.sync_messages(only_new=True)
            branch = transcript.branch
            message, answer = await self._service.send(
                text, composer.pictures, branch[-1] if branch else None
            )
        except HistoryError as error:
            composer.restore(text, str(error))  # the pictures are where they were
            return
        await composer.remove_pictures()
        await self._conversations.hide_welcome()
        await transcript.add(message, answer)
        await self._service.refresh(message.conversation_id)

    def stop(self) -> bool:
        """Stop the answer that is being written, or both of a pair; False if there is none."""
        pending = [one for one in self._service.pending() if one.final_state is None]
        pair = self._context.transcript.pair
        if pending and pending[0].id in pair:
            stopped = [one for one in pending if one.id in pair]
        else:
            stopped = pending[:1]
        # The one that waits comes first: stopping the other would begin it.
        for answer in reversed(stopped):
            self._service.answers.stop(answer)
        return bool(stopped)

    # Other answers

    async def regenerate(self) -> None:
        """Another answer, in place of the selected one or the last."""
        composer, transcript = self._context.composer, self._context.transcript
        message = transcript.selected_message(lambda one: True)
        if message is None:
            composer.show_error("There is no answer to regenerate yet.")
            return
        if message.id in self._service.answers.pending:
            composer.show_error("This answer is still being written: Esc stops it.")
            return
        answer = await self._service.regenerate(message)
        composer.show_error("")
        if message.role == "assistant":
            await transcript.remove_from(message.id)
        else:
            await transcript.remove_after(message.id)
        await transcript.add(answer)
        composer.input.focus()
        await self._service.refresh()

    async def show_selected_sibling(self, step: int) -> None:
        """The answer before (-1) or after (1) the selected one."""
        message = self._context.transcript.selected_message(lambda one: one.siblings > 1)
        if message is None:
            self._context.composer.show_error("There is only one answer: Ctrl+R makes another.")
        else:
            await self.show_sibling(message, step)

    async def show_sibling(self, message: Message, step: int) -> None:
        """The answer before or after `message`, and what followed it."""
        transcript = self._context.transcript
        had_focus = isinstance(self._context.screen.focused, MessageView)
        branch = await self._service.show_sibling(message, step)
        if branch is None:
            return
        await transcript.remove_from(message.id)
        known = {one.id for one in transcript.branch}
        new = [one for one in branch if one.id not in known]
        await transcript.add(*new)
        if had_focus and new and (view := transcript.view(new[0].id)) is not None:
            view.focus()

    # Copying

    def copy(self) -> None:
        """Copy the focused message, or the last answer."""
        context, focused = self._context, self._context.screen.focused
        if isinstance(focused, MessageView):
            text = focused.text
        else:
            message = context.transcript.selected_message(
                lambda one: one.role == "assistant" and bool(one.text)
            )
            text = message.text if message else ""
        if not text:
            context.composer.show_error("There is no text here to copy.")
            return
        context.screen.app.copy_to_clipboard(clean(text))
        context.screen.notify("Copied.", timeout=2)
