"""What is asked about pictures that come with a name or a caption and no question.

Several wordings, so that no single one has to be hit later; which one is asked
depends on the picture alone, so that it is the same in every run.
"""

import re
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
    "what is to be seen here?",
    "Tell me what is in the picture.",
)

_NUMBERED = re.compile(r"\d+[._ -]+(?=\D)")


def asked_class(sha256: str) -> str:
    """The question after the class of a picture."""
    return CLASS[int(sha256[:8], 16) % len(CLASS)]


def asked_caption(sha256: str) -> str:
    """The question after the caption of a picture."""
    return CAPTION[int(sha256[:8], 16) % len(CAPTION)]


def readable(name: str) -> str:
    """A class's name as people write it: `red_kite` is a red kite."""
    return " ".join(name.replace("_", " ").split())


def readable_names(names: Iterable[str]) -> dict[str, str]:
    """As `readable`, for all classes together: numbers before each of them go, too.

    `001.Black_footed_Albatross` beside others of that kind is a black footed
    albatross, while `1_euro` and `2_euro` need their numbers.
    """
    found = {name: readable(name) for name in names}
    bare = {name: readable(_NUMBERED.sub("", name, count=1)) for name in found}
    all_numbered = all(_NUMBERED.match(name) for name in found)
    if all_numbered and len(set(bare.values())) == len(found):
        return bare
    return found
