"""Makes questions about one scene with their answers, which follow from the scene alone.

A question is only made if a person could answer it in exactly one way. `Question.group` is a finer
classification within the type, and `Question.choice` is the group's answer: a model that does not look
can at best always give the most frequent choice of each group.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import wording as w
from grader import NOTHING
from scene import COLOURS, SHAPES, SIZES, UNSEEN_PAIRS, Scene, Thing

Ref = tuple[str | None, str | None, str | None]  # size, colour, shape; None if not mentioned


@dataclass(slots=True)
class Question:
    """A question about a scene. `ref` is how it refers to things."""

    type: str
    text: str
    answer: str
    group: str = ""
    choice: str = ""
    about: Thing | None = None  # what a later "it" would mean
    ref: Ref = (None, None, None)


Maker = Callable[[Scene, random.Random, Thing | None], Question | None]

# Which of size, colour and shape a reference mentions, and how often.
FORMS: tuple[tuple[bool, bool, bool], ...] = (
    (False, False, True),
    (False, True, False),
    (False, True, True),
    (True, False, True),
    (True, True, False),
    (True, True, True),
    (True, False, False),
)
FORM_WEIGHTS = (30, 18, 34, 7, 4, 5, 2)


def attributes(thing: Thing) -> tuple[str, str, str]:
    return thing.size, thing.colour, thing.shape


def matches(scene: Scene, ref: Ref) -> list[Thing]:
    size, colour, shape = ref
    return [
        t
        for t in scene.things
        if size in (None, t.size) and colour in (None, t.colour) and shape in (None, t.shape)
    ]


def noun(ref: Ref, rng: random.Random | None = None) -> str:
    """The noun phrase of a reference; the canonical one without `rng`."""
    size, colour, shape = ref
    last = shape or "thing"
    if rng is not None and shape is None and rng.random() < 0.45:
        last = "object"
    if size is not None and rng is not None:
        size = rng.choice(w.SIZE_WORDS[size])
    return " ".join(word for word in (size, colour, last) if word)


def _restrict(values: tuple[str, str, str], form: tuple[bool, bool, bool]) -> Ref:
    return tuple(v if named else None for v, named in zip(values, form, strict=True))  # type: ignore[return-value]


def unique_ref(scene: Scene, thing: Thing, rng: random.Random, hidden: int = -1) -> Ref | None:
    """A reference that fits only this thing and does not mention attribute number `hidden`."""
    if len(scene.things) == 1 and rng.random() < 0.12:
        return (None, None, None)
    forms, weights = [], []
    for form, weight in zip(FORMS, FORM_WEIGHTS, strict=True):
        if hidden < 0 or not form[hidden]:
            ref = _restrict(attributes(thing), form)
            if len(matches(scene, ref)) == 1:
                forms.append(ref)
                weights.append(weight)
    return rng.choices(forms, weights)[0] if forms else None


def absent_ref(
    scene: Scene, rng: random.Random, form: tuple[bool, bool, bool], unseen: bool
) -> Ref | None:
    """A reference of this form that fits no thing; many differ from a thing in one attribute only."""
    for _ in range(12):
        values = [rng.choice(SIZES), rng.choice(COLOURS), rng.choice(SHAPES)]
        if scene.things and rng.random() < 0.6:
            near = list(attributes(rng.choice(scene.things)))
            change = rng.choice([i for i in range(3) if form[i]])
            near[change] = values[change]
            values = near
        if unseen and form[1] and form[2] and not (form[0] and rng.random() < 0.3):
            values[1], values[2] = rng.choice(sorted(UNSEEN_PAIRS))
        pair = (values[1], values[2])
        if form[1] and form[2] and (pair in UNSEEN_PAIRS) != unseen:
            continue
        ref = _restrict((values[0], values[1], values[2]), form)
        if not matches(scene, ref):
            return ref
    return None


def _form(rng: random.Random, hidden: int = -1) -> tuple[bool, bool, bool]:
    while True:
        form = rng.choices(FORMS, FORM_WEIGHTS)[0]
        if hidden < 0 or not form[hidden]:
            return form


def _target(
    scene: Scene, rng: random.Random, focus: Thing | None, hidden: int
) -> tuple[Thing, Ref] | None:
    for thing in [focus] if focus else rng.sample(scene.things, len(scene.things)):
        ref = unique_ref(scene, thing, rng, hidden)
        if ref is not None:
            return thing, ref
    return None


def _attribute(
    name: str,
    wordings: tuple[str, ...],
    hidden: int,
    answer_for: Callable[[Scene, Thing], str | None],
) -> Maker:
    """Makes questions about an attribute of one thing, sometimes of one that is not in the scene."""

    def make(scene: Scene, rng: random.Random, focus: Thing | None) -> Question | None:
        template = rng.choice(wordings)
        if focus is None and rng.random() < (0.08 if scene.things else 0.5):
            ref = absent_ref(scene, rng, _form(rng, hidden), False)
            if ref is None:
                return None
            text = w.typed(rng, template, the="the " + noun(ref, rng))
            return Question(name, text, f"There is no {noun(ref)}.", name, "absent")
        target = _target(scene, rng, focus, hidden)
        answer = answer_for(scene, target[0]) if target else None
        if target is None or answer is None:
            return None
        text = w.typed(rng, template, the="the " + noun(target[1], rng))
        return Question(name, text, answer, name, answer, target[0], target[1])

    return make


def place(scene: Scene, thing: Thing) -> str | None:
    """Which ninth of the picture has the thing's centre; None if it is close to a border between ninths."""
    words = []
    for at, side, names in (
        (thing.y, scene.height, ("top", "", "bottom")),
        (thing.x, scene.width, ("left", "", "right")),
    ):
        share = at / side
        if min(abs(share - 1 / 3), abs(share - 2 / 3)) < 0.04:
            return None
        words.append(names[int(share * 3)])
    row, column = words
    if row and column:
        return f"It is at the {row} {column}."
    if row:
        return f"It is at the {row}."
    return f"It is on the {column}." if column else "It is in the middle."


ask_colour = _attribute("colour", w.COLOUR, 1, lambda _, t: f"It is {t.colour}.")
ask_shape = _attribute("shape", w.SHAPE, 2, lambda _, t: f"It is {w.article(t.shape)}.")
ask_size = _attribute("size", w.SIZE, 0, lambda _, t: f"It is {t.size}.")
ask_where = _attribute("where", w.WHERE, -1, place)


def caption(scene: Scene) -> str:
    """Lists the things from left to right, equal ones together, then the writing."""
    kinds: Counter[tuple[str, str, str]] = Counter(
        attributes(t) for t in sorted(scene.things, key=lambda t: t.x)
    )
    items = [
        f"a {size} {colour} {shape}"
        if n == 1
        else f"{w.NUMBERS[n]} {size} {colour} {w.plural(shape)}"
        for (size, colour, shape), n in kinds.items()
    ]
    if scene.writing is not None:
        kind = "number" if scene.writing.is_number else "word"
        items.append(f'the {kind} "{scene.writing.text}"')
    if not items:
        return NOTHING
    return "I see " + ", ".join(items[:-1]) + (" and " if items[:-1] else "") + items[-1] + "."


def ask_caption(scene: Scene, rng: random.Random, focus: Thing | None) -> Question:
    answer = caption(scene)
    return Question("caption", w.typed(rng, rng.choice(w.CAPTION)), answer, "caption", answer)


def ask_count(scene: Scene, rng: random.Random, focus: Thing | None) -> Question:
    answer = w.there_are(len(scene.things))
    return Question("count", w.typed(rng, rng.choice(w.COUNT)), answer, "count", answer)


def ask_count_kind(scene: Scene, rng: random.Random, focus: Thing | None) -> Question | None:
    form = rng.choices(FORMS, (30, 26, 24, 8, 4, 4, 4))[0]
    unseen = focus is not None
    if unseen:
        form = (form[0], True, True)
    if rng.random() < 0.15 or not scene.things:
        ref = absent_ref(scene, rng, form, unseen)
    else:
        refs = sorted(
            {_restrict(attributes(t), form) for t in ([focus] if focus else scene.things)}
        )
        counts = [len(matches(scene, r)) for r in refs]
        count = rng.choice(sorted(set(counts)))
        if count == 1 and max(counts) > 1 and rng.random() < 0.65:
            count = max(counts)
        ref = rng.choice([r for r, n in zip(refs, counts, strict=True) if n == count])
    if ref is None:
        return None
    many = noun((ref[0], ref[1], None), rng).rsplit(" ", 1)
    last = w.plural(ref[2]) if ref[2] else rng.choice(("things", "objects", "shapes"))
    words = " ".join([*many[:-1], last])
    answer = w.there_are(len(matches(scene, ref)))
    text = w.typed(rng, rng.choice(w.COUNT_KIND), many=words)
    return Question("count_kind", text, answer, f"count_kind/{sum(form)}", answer, None, ref)


def _pair(
    scene: Scene,
    rng: random.Random,
    focus: Thing | None,
    fits: Callable[[Thing, Thing], bool],
    hidden: int,
) -> tuple[Thing, Ref, Thing, Ref] | None:
    """Two things, in either order, for which `fits` holds and that have unique references."""
    order = rng.sample(scene.things, len(scene.things))
    for a in [focus] if focus else order:
        for b in order:
            if b is a or not fits(a, b):
                continue
            one, two = unique_ref(scene, a, rng, hidden), unique_ref(scene, b, rng, hidden)
            if one is not None and two is not None:
                return (a, one, b, two) if rng.random() < 0.5 else (b, two, a, one)
    return None


def _apart(scene: Scene, a: Thing, b: Thing) -> list[str]:
    axes = []
    if abs(a.x - b.x) >= 0.12 * scene.width:
        axes.append("x")
    if abs(a.y - b.y) >= 0.12 * scene.height:
        axes.append("y")
    return axes


def ask_relation(scene: Scene, rng: random.Random, focus: Thing | None) -> Question | None:
    pair = _pair(scene, rng, focus, lambda a, b: bool(_apart(scene, a, b)), -1)
    if pair is None:
        return None
    a, one, b, two = pair
    if rng.choice(_apart(scene, a, b)) == "x":
        direction = rng.choice(("left", "right"))
        true = (a.x < b.x) == (direction == "left")
    else:
        direction = rng.choice(("above", "below"))
        true = (a.y < b.y) == (direction == "above")
    text = w.typed(
        rng,
        rng.choice(w.RELATION),
        the="the " + noun(one, rng),
        other="the " + noun(two, rng),
        relation=rng.choice(w.DIRECTIONS[direction]),
    )
    answer = "Yes, it is." if true else "No, it is not."
    return Question("relation", text, answer, "relation", answer, a, one)


def ask_bigger(scene: Scene, rng: random.Random, focus: Thing | None) -> Question | None:
    pair = _pair(scene, rng, focus, lambda a, b: a.size != b.size, 0)
    if pair is None:
        return None
    a, one, b, two = pair
    more = "smaller" if rng.random() < 0.2 else "bigger"
    first = (a.size == "large") == (more == "bigger")
    # The answer repeats the question's words, so that both say "object" or "thing".
    text = w.typed(
        rng,
        rng.choice(w.BIGGER),
        the="the " + noun(one),
        other="the " + noun(two),
        more=more if more == "smaller" or rng.random() < 0.8 else "larger",
    )
    winner, ref = (a, one) if first else (b, two)
    answer = f"The {noun(ref)} is {more}."
    return Question("bigger", text, answer, "bigger", "first" if first else "second", winner, ref)


def ask_order(scene: Scene, rng: random.Random, focus: Thing | None) -> Question | None:
    """Asks for all things in order, or which of two is further in a direction, if that is unambiguous."""
    way = rng.choice(("left", "right", "above", "above", "below", "below"))
    upright = way in ("above", "below")
    side = scene.height if upright else scene.width

    def along(thing: Thing) -> float:
        at = thing.y if upright else thing.x
        return at / side if way in ("left", "above") else -at / side

    if rng.random() < 0.5:
        pair = _pair(scene, rng, focus, lambda a, b: abs(along(a) - along(b)) >= 0.12, -1)
        if pair is None:
            return None
        a, one, b, two = pair
        # As in `bigger`, the answer repeats the question's words.
        text = w.typed(
            rng,
            rng.choice(w.BIGGER),
            the="the " + noun(one),
            other="the " + noun(two),
            more=w.FURTHER[way],
        )
        first = along(a) < along(b)
        winner, ref = (a, one) if first else (b, two)
        answer = f"The {noun(ref)} is {w.FURTHER[way]}."
        choice = "first" if first else "second"
        return Question("order", text, answer, "order/two", choice, winner, ref)
    row = sorted(scene.things, key=along)
    if len(row) < 2 or any(along(b) - along(a) < 0.05 for a, b in pairwise(row)):
        return None
    way_words = rng.choice(w.WAYS[way])
    text = w.typed(rng, rng.choice(w.ORDER), way=way_words)
    names = [w.article(noun(attributes(t))) for t in row]
    answer = f"I see {', '.join(names[:-1])} and {names[-1]}."
    return Question("order", text, answer, "order/all", answer)


def ask_is_there(scene: Scene, rng: random.Random, focus: Thing | None) -> Question | None:
    yes = rng.random() < 0.5
    if focus is None and rng.random() < 0.08:
        # Most scenes have no writing, so most of these are skipped to balance yes and no.
        if (scene.writing is not None) != yes or (not yes and rng.random() < 0.65):
            return None
        answer = "Yes, there is." if yes else "No, there is not."
        text = w.typed(rng, rng.choice(w.ANY_WRITING))
        return Question("is_there", text, answer, "is_there", answer)
    form = rng.choices(FORMS, (26, 14, 40, 7, 4, 8, 1))[0]
    if focus is not None:
        form = (form[0], True, True)
    if not yes:
        ref = absent_ref(scene, rng, form, focus is not None)
    elif scene.things:
        ref = _restrict(attributes(focus or rng.choice(scene.things)), form)
    else:
        ref = None
    if ref is None:
        return None
    answer = "Yes, there is." if yes else "No, there is not."
    text = w.typed(rng, rng.choice(w.IS_THERE), a=w.article(noun(ref, rng)))
    there = matches(scene, ref)
    about = there[0] if len(there) == 1 else None
    return Question("is_there", text, answer, f"is_there/{sum(form)}", answer, about, ref)


def ask_read(scene: Scene, rng: random.Random, focus: Thing | None) -> Question | None:
    wordings = w.READ
    if scene.writing is None:
        return Question("read", w.typed(rng, rng.choice(wordings)), w.NO_WRITING, "read", "absent")
    if rng.random() < 0.35:
        wordings = w.READ_NUMBER if scene.writing.is_number else w.READ_WORD
    answer = f'It says "{scene.writing.text}".'
    return Question("read", w.typed(rng, rng.choice(wordings)), answer, "read", answer)


MAKERS: dict[str, Maker] = {
    "caption": ask_caption,
    "colour": ask_colour,
    "shape": ask_shape,
    "count": ask_count,
    "count_kind": ask_count_kind,
    "where": ask_where,
    "relation": ask_relation,
    "bigger": ask_bigger,
    "order": ask_order,
    "is_there": ask_is_there,
    "size": ask_size,
    "read": ask_read,
}
