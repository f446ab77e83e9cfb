"""Wordings of questions and answers.

Each type has several wordings; `typed` varies case, question mark, spelling and typos.
"""

import random
import re

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
PLURALS = {"cross": "crosses"}
SIZE_WORDS = {
    "large": ("large", "large", "large", "big"),
    "small": ("small", "small", "small", "little"),
}

NO_PICTURE = "Please attach a picture first: type /attach and its path."
NO_WRITING = "There is no writing."

# {the}: a noun with "the"; {a}: with "a" or "an"; {many}: a plural; {p}: "picture", "image" …
CAPTION = (
    "what is in this {p}?",
    "what's in the {p}?",
    "describe the {p}.",
    "describe this {p}",
    "what do you see?",
    "what can you see in the {p}?",
    "what can you see?",
    "tell me what is in this {p}.",
    "tell me what you see",
    "what is here?",
    "what is this?",
    "what is shown here?",
    "what does the {p} show?",
    "list everything you see.",
    "what is drawn here?",
    "what are you looking at?",
    "please describe it",
    "caption this {p}",
)
COLOUR = (
    "what {colour} is {the}?",
    "what {colour} is {the}?",
    "which {colour} is {the}?",
    "what is the {colour} of {the}?",
    "what's the {colour} of {the}?",
    "tell me the {colour} of {the}.",
    "what {colour} does {the} have?",
    "{the} is what {colour}?",
)
SHAPE = (
    "what shape is {the}?",
    "what shape is {the}?",
    "which shape is {the}?",
    "what is {the}?",
    "what is the shape of {the}?",
    "what kind of shape is {the}?",
    "what shape does {the} have?",
    "tell me the shape of {the}.",
)
COUNT = (
    "how many objects are there?",
    "how many objects are there?",
    "how many things are in the {p}?",
    "how many things do you see?",
    "how many shapes are there?",
    "how many objects can you see in this {p}?",
    "count the objects.",
    "count the things in the {p}",
    "how many are there in all?",
    "what is the number of objects?",
    "how many shapes does the {p} have?",
)
COUNT_KIND = (
    "how many {many} are there?",
    "how many {many} are there?",
    "how many {many} do you see?",
    "how many {many} are in the {p}?",
    "how many {many} can you see?",
    "count the {many}.",
    "how many {many} does the {p} have?",
    "what is the number of {many}?",
    "tell me how many {many} there are",
)
WHERE = (
    "where is {the}?",
    "where is {the}?",
    "where's {the}?",
    "where in the {p} is {the}?",
    "where can i find {the}?",
    "where do you see {the}?",
    "what is the position of {the}?",
    "in which part of the {p} is {the}?",
    "tell me where {the} is.",
)
RELATION = (
    "is {the} {relation} {other}?",
    "is {the} {relation} {other}?",
    "is {the} {relation} {other}?",
    "tell me if {the} is {relation} {other}.",
    "is it true that {the} is {relation} {other}?",
    "would you say {the} is {relation} {other}?",
    "{the} is {relation} {other}, right?",
)
DIRECTIONS = {
    "left": ("left of", "to the left of", "on the left of", "left of"),
    "right": ("right of", "to the right of", "on the right of", "right of"),
    "above": ("above", "above", "over", "higher than"),
    "below": ("below", "below", "under", "lower than"),
}
BIGGER = (
    "which is {more}, {the} or {other}?",
    "which is {more}, {the} or {other}?",
    "which one is {more}: {the} or {other}?",
    "what is {more}, {the} or {other}?",
    "is {the} or {other} {more}?",
    "which of the two is {more}, {the} or {other}?",
    "{the} or {other}, which is {more}?",
)
ORDER = (
    "list the objects {way}.",
    "list the things {way}",
    "list everything {way}.",
    "name the objects {way}",
    "what do you see {way}?",
    "what is in the {p} {way}?",
    "describe the {p} {way}.",
    "{way}, what is in the {p}?",
)
WAYS = {
    "left": ("from left to right",),
    "right": ("from right to left",),
    "above": ("from top to bottom", "from top to bottom", "from the top down"),
    "below": ("from bottom to top", "from the bottom up"),
}
FURTHER = {
    "left": "further left",
    "right": "further right",
    "above": "higher",
    "below": "lower",
}
IS_THERE = (
    "is there {a}?",
    "is there {a}?",
    "is there {a} in the {p}?",
    "do you see {a}?",
    "can you see {a}?",
    "does the {p} have {a}?",
    "is {a} in this {p}?",
    "does this {p} show {a}?",
)
ANY_WRITING = (
    "is there any writing?",
    "is there any text in the {p}?",
    "do you see any writing?",
    "is anything written here?",
    "does the {p} have any text?",
    "is something written in the {p}?",
)
SIZE = (
    "how big is {the}?",
    "is {the} small or large?",
    "is {the} big or small?",
    "what size is {the}?",
    "is {the} large or small?",
    "what is the size of {the}?",
    "how large is {the}?",
    "tell me the size of {the}.",
)
READ = (
    "what does it say?",
    "what does the {p} say?",
    "what is written here?",
    "what is written in the {p}?",
    "what does the text say?",
    "read the text.",
    "can you read the writing?",
    "what's written?",
    "please read it to me",
    "what does the writing say?",
)
READ_WORD = (
    "what word is written?",
    "which word is written here?",
    "what is the word?",
    "read the word.",
)
READ_NUMBER = (
    "what number is written?",
    "what number is written here?",
    "what is the number?",
    "which number do you see?",
)
MORE = (
    "which {p} has more {many}?",
    "which {p} has more {many}?",
    "which of the two {p}s has more {many}?",
    "in which {p} are there more {many}?",
    "where are more {many}, in the first or the second {p}?",
    "are there more {many} in the first or in the second {p}?",
    "which one has more {many}?",
    "does the first or the second {p} have more {many}?",
)
BOTH = (
    "is there {a} in both {p}s?",
    "do both {p}s have {a}?",
    "do you see {a} in both {p}s?",
    "is {a} in both {p}s?",
    "which of the {p}s has {a}?",
    "is there {a} in the first, in the second or in both?",
)

TYPO_WORDS = frozenset(
    re.findall(
        r"\w+",
        "what which there picture image drawing please many colour color where does describe object "
        "objects things thing written tell count number position looking shown everything both writing "
        "have these this show would true shape shapes text find",
    )
)
_WORD = re.compile(r"[a-z]{4,}")


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def there_are(number: int) -> str:
    return "There is one." if number == 1 else f"There are {NUMBERS[number]}."


def _typo(text: str, rng: random.Random) -> str:
    places = [m for m in _WORD.finditer(text) if m.group() in TYPO_WORDS]
    if not places:
        return text
    match = rng.choice(places)
    at = rng.randrange(match.start() + 1, match.end() - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def typed(rng: random.Random, template: str, **parts: str) -> str:
    """The question as a person might type it."""
    draw = rng.random()
    picture = (
        "picture"
        if draw < 0.6
        else "image"
        if draw < 0.85
        else "drawing"
        if draw < 0.95
        else "scene"
    )
    colour = "colour" if rng.random() < 0.5 else "color"
    text = template.format(p=picture, colour=colour, **parts)
    draw = rng.random()
    if draw < 0.04:
        text = rng.choice(("hey, ", "so ", "ok, ", "now ", "hi, ", "please tell me: ")) + text
    elif draw < 0.08 and text[-1] in "?.":
        text = text[:-1] + rng.choice((" please", ", please", " here")) + text[-1]
    if rng.random() < 0.05:
        text = _typo(text, rng)
    draw = rng.random()
    if draw < 0.55:
        text = text[0].upper() + text[1:]
    elif draw < 0.56:
        text = text.upper()
    if text[-1] in "?." and rng.random() < 0.3:
        text = text[:-1]
    return text
