"""What can go wrong that a person can mend.

    MmchatError
    ├── SettingsError    settings.toml, an environment variable or a flag
    ├── ImageError       a picture that cannot be used
    ├── HistoryError     the history file or something asked of it
    ├── ModelError       a model folder, its weights, its chat template, memory
    │   ├── ModelNotFoundError   a name that no model on this machine has
    │   └── TooLongError     a message that the model has no room for
    ├── AdapterError     an adapter folder
    ├── DataError        training or evaluation data
    ├── RecipeError      a training recipe
    └── EngineError      the engine: not reachable, crashed, busy, refused a request

Each message is one sentence or two: what happened, to which file or option,
and what to do. Everything else that is raised is a bug and shows a traceback.
"""


class MmchatError(Exception):
    """The root of the family; the command line prints it and exits with 1."""


class SettingsError(MmchatError):
    """A setting has a value that cannot be used."""


class ImageError(MmchatError):
    """A picture cannot be read, decoded or accepted."""


class HistoryError(MmchatError):
    """The history cannot be opened, or holds no such thing."""


class ModelError(MmchatError):
    """A model cannot be found, loaded or used."""


class ModelNotFoundError(ModelError):
    """No model on this machine has this name."""


class TooLongError(ModelError):
    """A message alone exceeds the model's context."""


class AdapterError(MmchatError):
    """An adapter cannot be found, does not fit its base, or is not safe."""


class DataError(MmchatError):
    """Training or evaluation data cannot be used."""


class RecipeError(MmchatError):
    """A training recipe is wrong."""


class EngineError(MmchatError):
    """The engine is not reachable, failed, or refused a request."""
