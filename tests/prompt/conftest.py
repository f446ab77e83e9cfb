"""The tiny checkpoints of the models' tests."""

from tests.model.conftest import checkpoint, loaded, one_thread

__all__ = ["checkpoint", "loaded", "one_thread"]
