"""Links in answers."""

from functools import partial
from urllib.parse import urlsplit

from mmchat.sanitize import clean
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.screens.dialogs import ConfirmScreen

_OPENABLE = ("http", "https", "mailto")


class LinkController:
    """Opens a link of the model only after the person has read where it leads."""

    def __init__(self, context: ChatContext) -> None:
        self._context = context

    def open(self, href: str) -> None:
        self._context.show_dialog(partial(self._ask_to_open, href))

    async def _ask_to_open(self, href: str) -> None:
        screen = self._context.screen
        shown = clean(href, keep_newlines=False)
        if urlsplit(href).scheme.lower() not in _OPENABLE or shown != href:
            screen.notify(f"Not opened: {shown}", severity="warning", markup=False)
            return
        question = f"Open this address in the browser?\n{shown}"
        if await screen.app.push_screen_wait(ConfirmScreen(question, "Open", "Cancel")):
            screen.app.open_url(href)
