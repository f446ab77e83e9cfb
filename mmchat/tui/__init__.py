"""The terminal app. `run` opens it; nothing here imports torch."""

from mmchat.settings import Settings

__all__ = ["run"]


def run(settings: Settings, *, conversation: int | None = None, new: bool = False) -> None:
    """Open the app and return when the person leaves it.

    Goes on with the last conversation, with `conversation` (an id), or, with
    `new`, with an empty one. Raises HistoryError when the history cannot be
    opened or holds no such conversation, before the screen is touched.
    """
    from mmchat.tui.app import ChatApp

    app = ChatApp(settings, conversation=conversation, new=new)
    app.run()
    if app.return_code:  # a bug: Textual has shown its traceback
        raise SystemExit(app.return_code)
