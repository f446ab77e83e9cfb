"""Questions for pictures that come with a class or a caption but no question.

There are several wordings, so that the model does not learn a single one. The wording depends
only on the picture, so it is the same in every run.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

CLASS: Final = (
    "what is this?",
    "What is this?",
    "What is shown here?",
    "what do you see here?",
    "What does this picture show?",
    "what's this?",
    "Can you tell me what this is?",
)
CAPTION: Final = (
    "what is in this picture?",
    "What is in this picture?",
    "What can you see in this picture?",
    "Describe this picture.",
    "What can you see here?",
    "Tell me what is in the picture.",
)

_NUMBERED: Final = re.compile(r"\d+[._ -]+(?=\D)")


def class_question(sha256: str) -> str:
    """The question about the class of a picture."""
    return CLASS[int(sha256[:8], 16) % len(CLASS)]


def caption_question(sha256: str) -> str:
    """The question about the caption of a picture."""
    return CAPTION[int(sha256[:8], 16) % len(CAPTION)]


def class_label(name: str) -> str:
    """A class name in plain words: `red_kite` becomes `red kite`."""
    return unicodedata.normalize("NFC", " ".join(name.replace("_", " ").split()))


def class_labels(names: Iterable[str]) -> dict[str, str]:
    """`class_label` for all classes of a folder; number prefixes that all of them have are dropped.

    `001.Black_footed_Albatross` beside similar names becomes `Black footed Albatross`, while
    `1_euro` and `2_euro` need their numbers.
    """
    labels = {name: class_label(name) for name in names}
    bare = {name: class_label(_NUMBERED.sub("", name, count=1)) for name in labels}
    all_numbered = all(_NUMBERED.match(name) for name in labels)
    if all_numbered and len(set(bare.values())) == len(labels):
        return bare
    return labels
