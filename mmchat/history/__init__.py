"""Conversations, their pictures and how each answer was made, in one SQLite file.

Start with `History.open()`; everything it returns is one of the frozen types below. SQL stays
inside this package, and so does every sqlite3 error: what a person can fix is raised as
`mmchat.errors.HistoryError`.
"""

from mmchat.history.answer import Answer
from mmchat.history.errors import MissingError
from mmchat.history.inserts import HEAD
from mmchat.history.store import History
from mmchat.history.types import (
    Conversation,
    Hit,
    Message,
    Origin,
    Rating,
    Role,
    State,
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
    "MissingError",
    "Origin",
    "Rating",
    "Role",
    "State",
    "StoredImage",
    "TrainingExample",
]
