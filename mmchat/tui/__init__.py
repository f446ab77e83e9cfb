"""The terminal app. `run` opens it. Nothing here imports torch."""

from mmchat.settings import Settings

__all__ = ["run"]


def run(settings: Settings, *, conversation: int | None = None, new: bool = False) -> None:
    """Open the app, and return when the person quits.

    conversation: the id of the conversation to open, by default the last one.
    new: open an empty conversation.

    Raises HistoryError, before the screen is changed, if the history cannot be opened or has no
    such conversation.
    """
    from mmchat.tui.app import ChatApp

    app = ChatApp(settings, conversation=conversation, new=new)
    app.run()
    if app.return_code:  # a bug: Textual has shown its traceback
        raise SystemExit(app.return_code)
