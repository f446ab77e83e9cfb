"""The chat screen: lays out the parts, routes keys, commands and the asker's news."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, Markdown, Rule, TextArea

from mmchat.display.messages import is_too_long, model_label
from mmchat.errors import HistoryError
from mmchat.history import Message
from mmchat.images import PICTURE_SUFFIXES
from mmchat.tui.actions import ACTIONS, BY_ID
from mmchat.tui.choices import choices
from mmchat.tui.commands import UnknownCommandError, parse
from mmchat.tui.news import Changed, Ended, Grew, LoadEnded, LoadGoes, News
from mmchat.tui.pasted import leading
from mmchat.tui.screens.comparing import Comparing
from mmchat.tui.screens.stage import LISTED, Deed
from mmchat.tui.widgets.composer import Composer
from mmchat.tui.widgets.conversations import ConversationList, SearchLine
from mmchat.tui.widgets.input import ChatInput
from mmchat.tui.widgets.message import MessageView
from mmchat.tui.widgets.status import StatusLine, TitleLine
from mmchat.tui.widgets.transcript import Earlier, Transcript
from mmchat.tui.widgets.welcome import Welcome

LOOK_EVERY = 2.0
"""Seconds between looks at what other windows did."""


class ChatScreen(Comparing):
    """The one screen; what its actions do stands in deeds.py, judging.py and comparing.py."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # Priority: the text area would take some of these keys for itself.
        *(
            Binding(
                action.key,
                f"perform('{action.id}')",
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

    def __init__(self, start: int | None) -> None:
        """`start` is the conversation to open; None for a new one."""
        super().__init__()
        self._start = start
        self._refused: dict[int, Message] = {}
        """By conversation: a message that was too long for the model, to be put back."""

    def compose(self) -> ComposeResult:
        with Horizontal(id="all"):
            yield ConversationList(id="list")
            with Vertical(id="main"):
                yield TitleLine(id="title")
                with Vertical(id="stage"):
                    yield Transcript(self.app.session.picture, self.app.clock, id="transcript")
                yield Rule(id="rule")
                yield Composer(choices, id="composer")
                yield StatusLine(id="status")

    async def on_mount(self) -> None:
        wanted = self.app.asker.settings
        self._model_label = wanted.engine.url or model_label(
            wanted.model.name, wanted.model.adapter, "", ""
        )
        with self.told():
            if self._start is None:
                await self.show_new()
            else:
                await self.open(self._start)
        self.do_deeds()
        self.look_around()
        self.set_interval(LOOK_EVERY, self.look_around)

    # News of the asker

    def hear(self, news: News) -> None:
        """Called by the app for each thing that happened to an answer or a load."""
        match news:
            case Grew() | Changed() | Ended():
                # In the line: not while the conversation is changed under the answer's feet.
                self.put(partial(self._answer_news, news))
            case LoadGoes(model=model, stage=stage, fraction=fraction):
                self.status.show_loading(model, stage, fraction)
            case LoadEnded(status=status, problem=problem):
                if problem:
                    self.status.show_problem(problem)
                    return
                self.status.show_ready()
                if status is not None:
                    self._window = status.context_length
                    self._model_label = model_label(
                        status.model, status.adapter, status.quantization, status.device
                    )
                self.put(self.show_lines)

    async def _answer_news(self, news: Grew | Changed | Ended) -> None:
        view = self.transcript.view(news.live.id)
        if view is not None:  # else its conversation is not open
            await self._show_news(view, news)
        if isinstance(news, Ended) and news.message and is_too_long(news.message):
            question = await asyncio.to_thread(self.app.history.message, news.live.parent_id)
            self._refused[question.conversation_id] = question
            await self._put_back_refused()

    async def _show_news(self, view: MessageView, news: Grew | Changed | Ended) -> None:
        if isinstance(news, Grew):
            await view.grow()
        elif isinstance(news, Changed):
            view.show_state()
        else:
            await view.finish(news.message, news.problem)
            if news.message is None:
                return
            self.transcript.replace(news.message)
            made = news.message.origin
            if made and made.device:
                self._model_label = model_label(
                    made.model, made.adapter, made.quantization, made.device
                )
            await self.one_of_two_ended(news.message)
            await self.show_lines()

    async def _show(self, branch: Sequence[Message], at: int | None = None) -> None:
        await super()._show(branch, at)
        await self._put_back_refused()

    async def _put_back_refused(self) -> None:
        """A message that was too long goes back into the input, unless something is there."""
        composer, session = self.composer, self.app.session
        question = self._refused.pop(session.conversation_id or 0, None)
        if question is None or composer.input.text or composer.pictures:
            return
        composer.put_back(question.text)
        for image in question.images:
            await composer.add_picture(await asyncio.to_thread(session.picture, image))

    # Sending

    @on(ChatInput.Submitted)
    def _submitted(self, event: ChatInput.Submitted) -> None:
        event.stop()
        self.put(partial(self._submit, event.text))

    async def _submit(self, typed: str) -> None:
        files, text = leading(typed, PICTURE_SUFFIXES)
        if files:
            # What cannot be attached stays in the input, to be mended.
            self.composer.put_back(text if await self.attach(files) else typed)
            return
        if not text.strip():
            if self.composer.pictures:
                self.composer.complain("Type a question about the picture, then Enter.")
            return
        try:
            command = parse(text)
        except UnknownCommandError as error:
            self.composer.put_back(text, str(error))
            return
        if command is None:
            await self.send(text.strip())
        elif (deed := self._begin(command.action.id, command.argument)) is not None:
            await deed()

    async def send(self, text: str) -> None:
        """Write the message into the history, ask, and show both."""
        composer, transcript, session = self.composer, self.transcript, self.app.session
        try:
            # Behind what another window has added meanwhile, not beside it.
            await self.catch_up(only_more=True)
            branch = transcript.branch
            said, answer = await session.send(
                text, composer.pictures, branch[-1] if branch else None
            )
        except HistoryError as error:
            composer.put_back(text, str(error))  # the pictures are where they were
            return
        await composer.take()
        await self._leave_welcome()
        await transcript.add(said, answer)
        await session.refresh(said.conversation_id)
        await self.show_lines()

    # Routing

    def action_perform(self, action_id: str) -> None:
        self.perform(action_id)

    def perform(self, action_id: str) -> None:
        """Carry out an action: the one door for keys and the palette."""
        deed = self._begin(action_id, "")
        if deed is not None:
            self.put(deed)

    def _begin(self, action_id: str, argument: str) -> Deed | None:
        """Do of an action what can be done at once; what has to wait is returned."""
        begun: Deed | None = getattr(self, f"do_{BY_ID[action_id].method}")(argument)
        return begun

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
            self.composer.input.take_paste(event.text)

    @on(ChatInput.Steered)
    def _steered(self, event: ChatInput.Steered) -> None:
        event.stop()
        welcome = self.query(Welcome)
        if self.composer.input.suggesting or event.where == "chips" or not welcome:
            self.composer.steer(event.where, event.text)
        elif self.composer.pictures and event.where == "enter":
            self.composer.complain("Type a question about the picture, then Enter.")
        else:
            welcome.first().steer(event.where)

    @on(ChatInput.Scrolled)
    def _scrolled(self, event: ChatInput.Scrolled) -> None:
        event.stop()
        if abs(event.pages) > 1:
            end = self.transcript.scroll_end if event.pages > 0 else self.transcript.scroll_home
            end(animate=False)
        elif event.pages > 0:
            self.transcript.scroll_page_down(animate=False)
        else:
            self.transcript.scroll_page_up(animate=False)

    @on(ChatInput.PicturesPasted)
    def _pasted(self, event: ChatInput.PicturesPasted) -> None:
        event.stop()
        self.put(partial(self.attach, event.paths))

    @on(Composer.AttachWanted)
    def _attach_wanted(self, event: Composer.AttachWanted) -> None:
        event.stop()
        self.put(partial(self.attach, [event.path]))

    @on(Welcome.Chosen)
    def _example(self, event: Welcome.Chosen) -> None:
        event.stop()
        self.put(partial(self.attach, [Path(event.path)]))
        self.composer.input.take_text(event.question)
        self.composer.input.focus()

    @on(Earlier.Wanted)
    def _earlier(self, event: Earlier.Wanted) -> None:
        event.stop()
        self.put(self.transcript.more)

    @on(ConversationList.Opened)
    def _opened(self, event: ConversationList.Opened) -> None:
        event.stop()
        self.put(partial(self.open, event.conversation_id))

    @on(ConversationList.MoreWanted)
    def _more_listed(self, event: ConversationList.MoreWanted) -> None:
        event.stop()
        self._limit += LISTED
        self.put(self.show_list)

    @on(ConversationList.DeleteWanted)
    def _delete_wanted(self, event: ConversationList.DeleteWanted) -> None:
        event.stop()
        self.ask_to_delete(event.conversation_id)

    @on(SearchLine.Wanted)
    def _search_wanted(self, event: SearchLine.Wanted) -> None:
        event.stop()
        self.perform("search")

    @on(MessageView.SiblingWanted)
    def _sibling_wanted(self, event: MessageView.SiblingWanted) -> None:
        event.stop()
        self.put(partial(self.move, event.message, event.step))

    @on(Markdown.LinkClicked)
    def _link(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        self.ask_to_open(event.href)
