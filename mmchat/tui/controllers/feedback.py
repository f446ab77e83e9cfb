"""What the person thinks of an answer: it is rated, or corrected."""

from functools import partial

from mmchat.history import Message, Rating
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.controllers.conversations import ConversationsController
from mmchat.tui.screens.correct import CorrectScreen
from mmchat.tui.widgets.message import MessageView

_INCOMPLETE = ("length", "interrupted", "failed")


class FeedbackController:
    """Feedback from which mmchat can learn."""

    def __init__(self, context: ChatContext, conversations: ConversationsController) -> None:
        self._context = context
        self._service = context.service
        self._conversations = conversations

    def rate(self, rating: Rating) -> None:
        """Rate the selected answer; the same rating again removes it."""
        message = self._selected_answer()
        if message is not None:
            self._context.tasks.enqueue(partial(self._toggle_rating, message.id, rating))

    def _selected_answer(self) -> Message | None:
        """The focused answer, or the last one, if it is finished."""
        composer = self._context.composer
        message = self._context.transcript.selected_message(lambda one: one.role == "assistant")
        if message is None:
            composer.show_error("There is no answer yet to rate or to correct.")
        elif message.id in self._service.answers.pending:
            composer.show_error("This answer is still being written: Esc stops it.")
            message = None
        return message

    async def _toggle_rating(self, message_id: int, rating: Rating) -> None:
        message = await self._service.toggle_rating(message_id, rating)
        transcript = self._context.transcript
        transcript.replace(message)
        if (view := transcript.view(message.id)) is not None:
            await view.finish(message)
        if message.rating == "good" and message.state in _INCOMPLETE:
            self._context.screen.notify(
                "This answer is incomplete, so nothing is learned from it: complete it with Ctrl+G.",
                timeout=6,
            )

    def correct(self) -> None:
        """Ask what the selected answer should have been."""
        message = self._selected_answer()
        if message is not None:
            self._context.show_dialog(partial(self._ask_correction, message.id))

    async def _ask_correction(self, message_id: int) -> None:
        context = self._context
        had_focus = isinstance(context.screen.focused, MessageView)
        message = await self._service.history.message(message_id)
        if message.state == "streaming":
            context.composer.show_error("This answer is being written in another window.")
            return
        correction: Message | None = await context.screen.app.push_screen_wait(
            CorrectScreen(
                message.text,
                partial(self._service.correct, message_id),
                lambda: not self._service.answers.pending,
            )
        )
        if correction is not None and correction.id != message_id:
            context.tasks.enqueue(partial(self._show_correction, message, correction, had_focus))

    async def _show_correction(
        self, message: Message, correction: Message, had_focus: bool
    ) -> None:
        context, transcript = self._context, self._context.transcript
        if correction.conversation_id != self._service.conversation_id:
            return  # another window deleted it
        if all(one.id != message.id for one in transcript.branch):
            await self._conversations.open(correction.conversation_id)  # on another branch by now
            return
        was_followed = transcript.branch[-1].id != message.id
        await transcript.remove_from(message.id)
        await transcript.add(correction)
        view = transcript.view(correction.id)
        if had_focus and view is not None:
            view.focus()
        else:
            context.composer.input.focus()
        await self._service.refresh()
        if was_followed:
            context.screen.notify(
                "The messages that followed are under the previous answer: Alt+←.", timeout=6
            )
