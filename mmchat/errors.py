"""Errors that a user can fix.

    MmchatError
    ├── SettingsError    settings.toml, an environment variable or a flag
    ├── ImageError       a picture that cannot be used
    ├── HistoryError     the history file or a request to it
    ├── ModelError       a model folder, its weights, its chat template, memory
    │   ├── ModelNotFoundError   no model on this machine has the name
    │   └── TooLongError         a message exceeds the model's context
    ├── AdapterError     an adapter folder
    ├── DataError        training or evaluation data
    ├── RecipeError      a training recipe
    └── EngineError      the engine is unreachable, crashed, busy, or refused a request

Each message is one or two sentences: what happened, to which file or option, and what to do. All
other exceptions are bugs and show a traceback.
"""


class MmchatError(Exception):
    """The base class; the command line prints the message and exits with 1."""


class SettingsError(MmchatError):
    """A setting has an invalid value."""


class ImageError(MmchatError):
    """A picture cannot be read, decoded or accepted."""


class HistoryError(MmchatError):
    """The history cannot be opened, or has no such item."""


class ModelError(MmchatError):
    """A model cannot be found, loaded or used."""


class ModelNotFoundError(ModelError):
    """No model on this machine has this name."""


class TooLongError(ModelError):
    """A message alone exceeds the model's context."""


class AdapterError(MmchatError):
    """An adapter cannot be found, does not match its base, or is unsafe."""


class DataError(MmchatError):
    """Training or evaluation data cannot be used."""


class RecipeError(MmchatError):
    """A training recipe is wrong."""


class EngineError(MmchatError):
    """The engine is not reachable, failed, or refused a request."""


def describe_error(error: BaseException, limit: int | None = 200) -> str:
    """The message of a library's error, on one line and cut at `limit`; its type if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
