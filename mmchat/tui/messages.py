"""Textual messages that are not of one widget."""

from textual.message import Message

from mmchat.chat.events import ChatEvent
from mmchat.tui.runs import RunSnapshot


class ServiceEvent(Message):
    """An event of the conversation service, on its way to the chat screen."""

    def __init__(self, event: ChatEvent) -> None:
        super().__init__()
        self.event = event


class RunChanged(Message):
    """A training run began, ended, or is in another state."""


class RunViewed(Message):
    """The person has seen the end of a training run."""

    def __init__(self, run: RunSnapshot) -> None:
        super().__init__()
        self.run = run
