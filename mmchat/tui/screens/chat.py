"""The chat screen: lays out the widgets, and routes actions and messages to the controllers."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.reactive import var
from textual.screen import Screen
from textual.widgets import Input, Markdown, Rule, TextArea

from mmchat.chat.events import (
    AnswerChanged,
    AnswerDelta,
    AnswerFinished,
    ConversationsChanged,
)
from mmchat.chat.service import ConversationService, load_picture
from mmchat.display.messages import tag_words, title
from mmchat.errors import HistoryError
from mmchat.history import Conversation, Message
from mmchat.tui import choices
from mmchat.tui.actions import ACTIONS
from mmchat.tui.controllers.answers import AnswersController
from mmchat.tui.controllers.comparison import ComparisonController
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.controllers.conversations import ConversationsController
from mmchat.tui.controllers.feedback import FeedbackController
from mmchat.tui.controllers.links import LinkController
from mmchat.tui.controllers.models import ModelController
from mmchat.tui.controllers.submission import SubmissionController
from mmchat.tui.controllers.sync import HistorySync
from mmchat.tui.controllers.unsent import UnsentMessages
from mmchat.tui.messages import ServiceEvent
from mmchat.tui.runs import Runs
from mmchat.tui.screens.help import HelpScreen
from mmchat.tui.task_queue import TaskQueue
from mmchat.tui.widgets.composer import Composer
from mmchat.tui.widgets.conversations import ConversationList, SearchLine
from mmchat.tui.widgets.input import ChatInput
from mmchat.tui.widgets.message import MessageView
from mmchat.tui.widgets.status import StatusLine, TitleLine
from mmchat.tui.widgets.transcript import Earlier, Transcript
from mmchat.tui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from mmchat.tui.screens.training import TrainingScreen

SYNC_SECONDS = 2.0
"""Between looks at what other windows did."""


class ChatScreen(Screen[None]):
    """The main screen. Each action of actions.py is a method here, or of the app."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # Priority, because the text area would handle some of these keys itself.
        *(
            Binding(
                action.key,
                action.target,
                action.title,
                id=action.id,
                priority=action.id != "stop",
                show=False,
            )
            for action in ACTIONS
            if action.key and action.id != "quit"
        ),
        Binding("ctrl+up", "step(-1)", "Previous message", id="screen.previous", show=False),
        Binding("ctrl+down", "step(1)", "Next message", id="screen.next", show=False),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 (Textual's own)
    VERTICAL_BREAKPOINTS = [(0, "-low"), (20, "-high")]  # noqa: RUF012
    AUTO_FOCUS = "#input"

    conversation: var[Conversation | None] = var(None, init=False)
    """The open conversation; None until its first message is sent."""

    def __init__(
        self,
        service: ConversationService,
        runs: Runs,
        clock: Callable[[], float],
        start: int | None,
    ) -> None:
        """start: the conversation to open; None for a new one."""
        super().__init__()
        self.service = service
        self.tasks = TaskQueue(lambda error: self.composer.show_error(error))
        self._runs = runs
        self._start = start
        self._chat_context = context = ChatContext(self, service, self.tasks, clock)
        unsent = UnsentMessages(context)
        self.conversations = ConversationsController(context, unsent)
        self.history_sync = HistorySync(context, self.conversations)
        self.models = ModelController(context)
        self.feedback = FeedbackController(context, self.conversations)
        self.comparison = ComparisonController(context, self.history_sync)
        self.answers = AnswersController(
            context, self.conversations, self.history_sync, self.comparison, unsent
        )
        self.submissions = SubmissionController(context, self.answers)
        self.links = LinkController(context)

    def compose(self) -> ComposeResult:
        clock, pending = self._chat_context.clock, self.service.answers.pending
        load = partial(load_picture, self.service.history.blocking)
        with Horizontal(id="all"):
            yield ConversationList(clock, id="list")
            with Vertical(id="main"):
                yield TitleLine(title(None), id="title")
                with Vertical(id="conversation"):
                    yield Transcript(load, pending, clock, id="transcript")
                yield Rule(id="rule")
                yield Composer(choices.list_choices, id="composer")
                yield StatusLine(id="status")

    async def on_mount(self) -> None:
        self.watch(self.transcript, "branch", self._show_figures)
        self.models.show_selected()
        try:
            if self._start is None:
                await self.conversations.open_new()
            else:
                await self.conversations.open(self._start)
        except HistoryError as error:
            self.composer.show_error(str(error))
        self.run_worker(self._run_tasks(), group="tasks")
        self.history_sync.sync()
        self.set_interval(SYNC_SECONDS, self.history_sync.sync)

    async def _run_tasks(self) -> None:
        try:
            await self.tasks.run()
        except Exception:
            if self.app.is_running:
                raise
            # The app is closing, and the widgets of the screen are gone.

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def status(self) -> StatusLine:
        return self.query_one(StatusLine)

    @property
    def conversation_list(self) -> ConversationList:
        return self.query_one(ConversationList)

    # What is shown

    def watch_conversation(self, conversation: Conversation | None) -> None:
        line = self.query_one(TitleLine)
        line.title = title(conversation)
        line.tags = tag_words(conversation.tags) if conversation else ""
        self.conversation_list.current = conversation.id if conversation else None

    def _show_figures(self, branch: tuple[Message, ...]) -> None:
        """The figures of the last answer, whenever the messages on the screen change."""
        self.status.origin = next(
            (one.origin for one in reversed(branch) if one.origin and one.state != "streaming"),
            None,
        )

    # Events of the conversation service

    @on(ServiceEvent)
    def _service_event(self, message: ServiceEvent) -> None:
        match message.event:
            case AnswerFinished() as event:
                self.answers.handle(event)
                self.models.handle(event)
            case AnswerChanged() | AnswerDelta() as event:
                self.answers.handle(event)
            case ConversationsChanged():
                self.conversation = self.service.conversation
                self.history_sync.refresh_list()
            case event:
                self.models.handle(event)

    # Actions

    def action_attach(self, path: str = "") -> None:
        self.submissions.attach(path)

    def action_new(self) -> None:
        self.tasks.enqueue(self.conversations.open_new)

    def action_conversations(self) -> None:
        self.toggle_class("listed")
        if self._list_covers:
            self.conversation_list.focus_rows()
        else:
            self.composer.input.focus()

    @property
    def _list_covers(self) -> bool:
        """Whether the list of conversations is shown over the conversation, in a narrow window."""
        return self.has_class("-narrow") and self.has_class("listed")

    def action_search(self, query: str = "") -> None:
        self.conversations.search(query)

    def action_rename(self, title: str = "") -> None:
        self.conversations.rename(title)

    def action_delete(self) -> None:
        self.conversations.delete()

    def action_tag(self, name: str = "") -> None:
        self.conversations.tag(name)

    def action_system(self, text: str = "") -> None:
        self.conversations.set_system(text)

    def action_stop(self) -> None:
        """Close or stop the first that applies: suggestions, the list, the answer, a comparison."""
        if self.composer.close_suggestions():
            return
        self.composer.show_error("")
        if self._list_covers:
            self.remove_class("listed")
        elif self.answers.stop():
            return
        elif self.transcript.pair:
            self.tasks.enqueue(self.transcript.collapse)
        self.composer.input.focus()

    def action_regenerate(self) -> None:
        self.tasks.enqueue(self.answers.regenerate)

    def action_previous_answer(self) -> None:
        self.tasks.enqueue(partial(self.answers.show_selected_sibling, -1))

    def action_next_answer(self) -> None:
        self.tasks.enqueue(partial(self.answers.show_selected_sibling, 1))

    def action_good(self) -> None:
        self.feedback.rate("good")

    def action_bad(self) -> None:
        self.feedback.rate("bad")

    def action_correct(self) -> None:
        self.feedback.correct()

    def action_copy(self) -> None:
        self.answers.copy()

    def action_model(self, name: str = "") -> None:
        self.models.select_model(name)

    def action_adapter(self, name: str = "") -> None:
        self.models.select_adapter(name)

    def action_compare(self, adapters: str = "") -> None:
        self.comparison.compare(adapters)

    def action_train(self, path: str = "") -> None:
        self._chat_context.show_dialog(partial(self._show_training, path))

    async def _show_training(self, path: str) -> None:
        screen_class = await asyncio.to_thread(_training_screen_class)
        self.app.push_screen(screen_class(self.service.answers, self._runs, path))

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen(list(self.active_bindings.values())))

    def action_step(self, step: int) -> None:
        """Move the focus to the message before or after the focused one."""
        views = list(self.query(MessageView))
        if not views:
            return
        at = views.index(self.focused) if isinstance(self.focused, MessageView) else len(views)
        if 0 <= at + step < len(views):
            views[at + step].focus()
        elif step > 0:
            self.composer.input.focus()

    # What is typed

    @on(ChatInput.Submitted)
    def _submitted(self, event: ChatInput.Submitted) -> None:
        event.stop()
        self.submissions.submit(event.text)

    def on_key(self, event: events.Key) -> None:
        """Typing goes to the input, wherever the focus is."""
        if (
            event.is_printable
            and event.character
            and not isinstance(self.focused, (Input, TextArea))
        ):
            event.stop()
            self.composer.input.focus()
            self.composer.input.insert(event.character)

    def on_paste(self, event: events.Paste) -> None:
        """So does what is pasted or dropped."""
        if not isinstance(self.focused, (Input, TextArea)):
            event.stop()
            self.composer.input.focus()
            self.composer.input.insert_paste(event.text)

    @on(ChatInput.Navigated)
    def _navigated(self, event: ChatInput.Navigated) -> None:
        event.stop()
        welcome = self.query(Welcome)
        if self.composer.input.suggesting or event.key == "chips" or not welcome:
            self.composer.navigate(event.key, event.text)
        elif self.composer.pictures and event.key == "enter":
            self.composer.show_error("Type a question about the picture, then Enter.")
        else:
            welcome.first().navigate(event.key)

    @on(ChatInput.Scrolled)
    def _scrolled(self, event: ChatInput.Scrolled) -> None:
        event.stop()
        self.transcript.scroll_pages(event.pages)

    # Messages of the widgets

    @on(ChatInput.PicturesPasted)
    def _pictures_pasted(self, event: ChatInput.PicturesPasted) -> None:
        event.stop()
        self.tasks.enqueue(partial(self.composer.attach, event.paths))

    @on(Composer.AttachRequested)
    def _attach_requested(self, event: Composer.AttachRequested) -> None:
        event.stop()
        self.tasks.enqueue(partial(self.composer.attach, [event.path]))

    @on(Welcome.Chosen)
    def _example_chosen(self, event: Welcome.Chosen) -> None:
        event.stop()
        self.tasks.enqueue(partial(self.composer.attach, [Path(event.path)]))
        self.composer.input.set_text(event.question)
        self.composer.input.focus()

    @on(Earlier.Requested)
    def _earlier_requested(self, event: Earlier.Requested) -> None:
        event.stop()
        self.tasks.enqueue(self.transcript.more)

    @on(ConversationList.Selected)
    def _conversation_selected(self, event: ConversationList.Selected) -> None:
        event.stop()
        self.tasks.enqueue(partial(self.conversations.open, event.conversation_id))

    @on(ConversationList.MoreRequested)
    def _more_requested(self, event: ConversationList.MoreRequested) -> None:
        event.stop()
        self.history_sync.list_more()

    @on(ConversationList.DeleteRequested)
    def _delete_requested(self, event: ConversationList.DeleteRequested) -> None:
        event.stop()
        self.conversations.delete(event.conversation_id)

    @on(SearchLine.Clicked)
    def _search_clicked(self, event: SearchLine.Clicked) -> None:
        event.stop()
        self.action_search()

    @on(MessageView.SiblingRequested)
    def _sibling_requested(self, event: MessageView.SiblingRequested) -> None:
        event.stop()
        self.tasks.enqueue(partial(self.answers.show_sibling, event.message, event.step))

    @on(Markdown.LinkClicked)
    def _link_clicked(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        self.links.open(event.href)


def _training_screen_class() -> "type[TrainingScreen]":
    # Imports what draws curves, which takes too long for the first paint to wait for.
    from mmchat.tui.screens.training import TrainingScreen

    return TrainingScreen
