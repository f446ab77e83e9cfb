"""Conversations, their pictures and the origin of each answer, in one SQLite file.

Start with `History.open()`; it returns the frozen types below. SQL and sqlite3 errors stay inside
this package: what a user can fix is raised as `mmchat.errors.HistoryError`.
"""

from mmchat.history.answer import Answer
from mmchat.history.errors import MissingError
from mmchat.history.inserts import HEAD
from mmchat.history.store import History
from mmchat.history.types import (
    Conversation,
    Hit,
    Message,
    MessageState,
    Origin,
    Rating,
    Role,
    StoredImage,
    TrainingExample,
)

__all__ = [
    "HEAD",
    "Answer",
    "Conversation",
    "History",
    "Hit",
    "Message",
    "MessageState",
    "MissingError",
    "Origin",
    "Rating",
    "Role",
    "StoredImage",
    "TrainingExample",
]
