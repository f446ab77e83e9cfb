"""Makes dialogs: one or several turns, about one picture, two or none, in a mix of types."""

import random
from dataclasses import dataclass

import offtopic
import questions as q
import wording as w
from grader import REFUSAL
from scene import Scene, Thing

Turn = tuple[str, str]  # the user's message, the model's answer


@dataclass(slots=True)
class Dialog:
    """A dialog. `group` and `choice` are those of its last question."""

    type: str
    turns: list[Turn]
    group: str
    choice: str

    def messages(self, last: bool = True) -> list[dict[str, object]]:
        """The turns as messages; without the last answer if not `last`."""
        out: list[dict[str, object]] = []
        for user, assistant in self.turns:
            out.append({"role": "user", "content": user})
            out.append({"role": "assistant", "content": assistant})
        return out if last else out[:-1]


IT = {
    "colour": (
        "and what {colour} is it?",
        "what {colour} is it?",
        "which {colour}?",
        "and its {colour}?",
    ),
    "shape": ("and what shape is it?", "what shape is it?", "which shape?", "and its shape?"),
    "where": ("and where is it?", "where is it?", "where?", "and where in the {p} is it?"),
    "size": ("and how big is it?", "is it small or large?", "what size is it?", "and its size?"),
}
IT_IS = ("is it {relation} {other}?", "and is it {relation} {other}?")
ALSO = ("and {what}?", "what about {what}?", "and {what}?", "how about {what}?")
CAPTION_OF = (
    "what is in {nth}?",
    "what do you see in {nth}?",
    "describe {nth}.",
    "tell me what is in {nth}",
    "what does {nth} show?",
    "and what can you see in {nth}?",
)
MORE_ANSWERS = (
    "The first picture has more.",
    "The second picture has more.",
    "They have the same number.",
)
BOTH_ANSWERS = ("Yes, in both.", "Only in the first.", "Only in the second.", "No, in neither.")

# The mean number of questions of each type about a scene's picture.
MIX = {
    "relation": 5.0,
    "where": 3.2,
    "count_kind": 4.2,
    "bigger": 2.0,
    "order": 3.0,
    "caption": 1.6,
    "colour": 2.0,
    "shape": 2.0,
    "is_there": 3.0,
    "count": 1.0,
    "size": 1.0,
}
FILL = ("count_kind", "is_there", "where", "relation", "colour", "shape", "is_there", "bigger")


def _it_answer(scene: Scene, thing: Thing, kind: str) -> str | None:
    if kind == "colour":
        return f"It is {thing.colour}."
    if kind == "shape":
        return f"It is {w.article(thing.shape)}."
    return q.place(scene, thing) if kind == "where" else f"It is {thing.size}."


def _it(scene: Scene, rng: random.Random, focus: Thing | None) -> Dialog | None:
    """A question about one thing, then one to three about "it"."""
    kind = rng.choice(("colour", "shape", "where", "size", "is_there", "is_there"))
    first = q.MAKERS[kind](scene, rng, focus)
    if first is None or first.about is None or (focus and first.about is not focus):
        return None
    turns = [(first.text, first.answer)]
    known = {kind} | {n for n, v in zip(("size", "colour", "shape"), first.ref, strict=True) if v}
    group = choice = ""
    for _ in range(rng.choices((1, 2, 3), (6, 3, 1))[0]):
        if rng.random() < 0.15:
            others = [t for t in scene.things if t is not first.about]
            ref = q.unique_ref(scene, rng.choice(others), rng) if others else None
            there = q.matches(scene, ref) if ref else []
            axes = q._apart(scene, first.about, there[0]) if there else []
            if not axes or ref is None:
                continue
            if axes[0] == "x":
                way = rng.choice(("left", "right"))
                true = (first.about.x < there[0].x) == (way == "left")
            else:
                way = rng.choice(("above", "below"))
                true = (first.about.y < there[0].y) == (way == "above")
            relation, other = rng.choice(w.DIRECTIONS[way]), "the " + q.noun(ref, rng)
            text = w.typed(rng, rng.choice(IT_IS), relation=relation, other=other)
            group, choice = "followup/relation", "Yes, it is." if true else "No, it is not."
        else:
            kinds = [k for k in ("colour", "shape", "where", "where", "size") if k not in known]
            if not kinds:
                break
            kind = rng.choice(kinds)
            answer = _it_answer(scene, first.about, kind)
            if answer is None:
                continue
            known.add(kind)
            text = w.typed(rng, rng.choice(IT[kind]))
            group, choice = f"followup/{kind}", answer
        turns.append((text, choice))
    return Dialog("followup", turns, group, choice) if len(turns) > 1 else None


def _also(scene: Scene, rng: random.Random, focus: Thing | None) -> Dialog | None:
    """The same question about another thing: "and the star?"."""
    kind = rng.choice(("colour", "where", "size", "shape", "is_there", "count_kind", "count_kind"))
    first = q.MAKERS[kind](scene, rng, None)
    second = q.MAKERS[kind](scene, rng, focus)
    if first is None or second is None or first.ref == second.ref or second.ref == (None,) * 3:
        return None
    if kind == "is_there":
        what = w.article(q.noun(second.ref, rng))
    elif kind == "count_kind":
        size, colour, shape = second.ref
        what = " ".join(v for v in (size, colour, w.plural(shape or "thing")) if v)
        what = "how many " + what if rng.random() < 0.5 else what
    else:
        what = "the " + q.noun(second.ref, rng)
    text = w.typed(rng, rng.choice(ALSO), what=what)
    turns = [(first.text, first.answer), (text, second.answer)]
    return Dialog("followup", turns, f"followup/{second.group}", second.choice)


def _chain(scene: Scene, rng: random.Random, focus: Thing | None) -> Dialog | None:
    """Unrelated questions, as people ask them one after the other."""
    questions = []
    if rng.random() < 0.12:
        greeting = offtopic.greeting(rng)
        questions.append(q.Question("greet", greeting[0], greeting[1]))
    last, number = None, rng.choice((2, 2, 3, 4))
    for turn in range(number):
        last_turn = turn == number - 1
        kinds = (
            ("colour", "shape", "where", "size") if focus and last_turn else (*MIX, "read", "where")
        )
        last = q.MAKERS[rng.choice(kinds)](scene, rng, focus if last_turn else None)
        if last is not None:
            questions.append(last)
    if len(questions) < 2 or last is None or last.type == "caption":
        return None
    turns = [(a.text, a.answer) for a in questions]
    return Dialog("followup", turns, f"followup/{last.group}", last.choice)


def followup(scene: Scene, rng: random.Random, focus: Thing | None = None) -> Dialog | None:
    draw = rng.random()
    if draw < 0.5:
        return _it(scene, rng, focus)
    return _also(scene, rng, focus) if draw < 0.75 else _chain(scene, rng, focus)


def ask(kind: str, scene: Scene, rng: random.Random, focus: Thing | None = None) -> Dialog | None:
    """One dialog of a type about one picture; None if the scene does not allow it."""
    if kind == "followup":
        return followup(scene, rng, focus)
    question = q.MAKERS[kind](scene, rng, focus)
    if question is None:
        return None
    return Dialog(kind, [(question.text, question.answer)], question.group, question.choice)


def about_scene(scene: Scene, rng: random.Random, number: int = 24) -> list[Dialog]:
    """The mix of dialogs for one picture. No two begin with the same message."""
    kinds = [kind for kind, mean in MIX.items() for _ in range(int(mean + rng.random()))]
    kinds += ["read"] * (3 if scene.writing is not None else int(rng.random() < 0.2))
    kinds += ["followup"] * rng.choice((1, 1, 2))
    kinds += ["refuse_question"] * (rng.random() < 0.5) + ["greet"] * (rng.random() < 0.1)
    rng.shuffle(kinds)
    dialogs: dict[str, Dialog] = {}
    for kind in kinds + [rng.choice(FILL) for _ in range(2 * number)]:
        if len(dialogs) == number:
            break
        if kind == "refuse_question":
            dialog: Dialog | None = refuse_question(rng, False)
        elif kind == "greet":
            dialog = greet(rng)
        else:
            dialog = ask(kind, scene, rng)
        if dialog is not None:
            dialogs.setdefault(dialog.turns[0][0].lower(), dialog)
    return list(dialogs.values())


def refuse_question(rng: random.Random, held_out: bool) -> Dialog:
    text = offtopic.out_of_scope(rng, held_out)
    return Dialog("refuse_question", [(text, REFUSAL)], "refuse_question", REFUSAL)


def greet(rng: random.Random) -> Dialog:
    text, answer = offtopic.greeting(rng)
    return Dialog("greet", [(text, answer)], "greet", answer)


def any_question(scene: Scene, rng: random.Random) -> str:
    """The text of some question about a scene, whatever its answer."""
    while True:
        kind = rng.choice((*MIX, "read", "caption"))
        question = q.MAKERS[kind](scene, rng, None)
        if question is not None:
            return question.text


def nopicture(scene: Scene, rng: random.Random) -> Dialog:
    turn = (any_question(scene, rng), w.NO_PICTURE)
    return Dialog("nopicture", [turn], "nopicture", w.NO_PICTURE)


def about_other(scene: Scene, rng: random.Random, number: int = 6) -> list[Dialog]:
    """Dialogs about a picture that is not a drawn scene. `scene` only provides the words."""
    dialogs = []
    for _ in range(number):
        draw = rng.random()
        if draw < 0.25:
            text = w.typed(rng, rng.choice(w.CAPTION))
        elif draw < 0.8:
            text = any_question(scene, rng)
        elif draw < 0.97:
            text = offtopic.out_of_scope(rng, False)
        else:
            dialogs.append(greet(rng))
            continue
        dialogs.append(Dialog("refuse_picture", [(text, REFUSAL)], "refuse_picture", REFUSAL))
    return dialogs


def _nth(rng: random.Random, number: int) -> str:
    word = rng.choice(("picture", "picture", "image", "one", "drawing"))
    if rng.random() < 0.2 and word != "one":
        return f"{word} {number + 1}"
    return f"the {('first', 'second')[number]} {word}"


def _refs(scenes: tuple[Scene, Scene], rng: random.Random) -> list[q.Ref]:
    forms = ((0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 0))
    size, colour, shape = rng.choice(forms)
    form = (bool(size), bool(colour), bool(shape))
    things = [t for s in scenes for t in s.things]
    refs = sorted({q._restrict(q.attributes(t), form) for t in things}, key=str)
    rng.shuffle(refs)
    return refs


def _more(scenes: tuple[Scene, Scene], rng: random.Random) -> Dialog | None:
    expected = rng.choice((0, 0, 0, 1, 1, 1, 2, 2))
    refs: list[q.Ref] = [(None, None, None)] if rng.random() < 0.2 else []
    for ref in refs + [r for _ in range(3) for r in _refs(scenes, rng)]:
        one, two = (len(q.matches(s, ref)) for s in scenes)
        result = 0 if one > two else 1 if two > one else 2
        if result != expected or one + two == 0:
            continue
        noun = w.plural(ref[2]) if ref[2] else rng.choice(("things", "objects"))
        many = " ".join(v for v in (ref[0], ref[1], noun) if v)
        text, answer = w.typed(rng, rng.choice(w.MORE), many=many), MORE_ANSWERS[result]
        return Dialog("compare", [(text, answer)], "compare/more", answer)
    return None


def _both(scenes: tuple[Scene, Scene], rng: random.Random) -> Dialog | None:
    expected = rng.randrange(4)
    refs = [r for _ in range(3) for r in _refs(scenes, rng)]
    if expected == 3:
        absent = q.absent_ref(scenes[0], rng, q._form(rng), False)
        refs = [absent] if absent else []
    for ref in refs:
        one, two = (bool(q.matches(s, ref)) for s in scenes)
        if (one, two) != ((True, True), (True, False), (False, True), (False, False))[expected]:
            continue
        text = w.typed(rng, rng.choice(w.BOTH), a=w.article(q.noun(ref, rng)))
        answer = BOTH_ANSWERS[expected]
        return Dialog("compare", [(text, answer)], "compare/both", answer)
    return None


def _one_of_two(scenes: tuple[Scene, Scene], rng: random.Random) -> Dialog | None:
    number = rng.randrange(2)
    if rng.random() < 0.35:
        text = w.typed(rng, rng.choice(CAPTION_OF), nth=_nth(rng, number))
        answer = q.caption(scenes[number])
        return Dialog("compare", [(text, answer)], "compare/caption", answer)
    kind = rng.choice(("colour", "shape", "where", "count_kind", "is_there", "count", "read"))
    question = q.MAKERS[kind](scenes[number], rng, None)
    if question is None or any(
        s in question.text.lower() for s in ("pic", "imag", "draw", "scen", "here")
    ):
        return None
    body = question.text.rstrip("?.")
    end = question.text[len(body) :]
    if rng.random() < 0.3:
        text = f"in {_nth(rng, number)}, {body[0].lower()}{body[1:]}{end}"
    else:
        text = f"{body} in {_nth(rng, number)}{end}"
    return Dialog(
        "compare", [(text, question.answer)], f"compare/{question.group}", question.choice
    )


def compare(scenes: tuple[Scene, Scene], rng: random.Random) -> Dialog:
    """One question about two pictures."""
    while True:
        maker = rng.choice((_more, _more, _more, _both, _both, _one_of_two, _one_of_two))
        dialog = maker(scenes, rng)
        if dialog is not None:
            return dialog


def about_two(scenes: tuple[Scene, Scene], rng: random.Random, number: int = 14) -> list[Dialog]:
    dialogs: dict[str, Dialog] = {}
    for _ in range(3 * number):
        dialog = compare(scenes, rng)
        dialogs.setdefault(dialog.turns[0][0].lower(), dialog)
        if len(dialogs) == number:
            break
    return list(dialogs.values())


def later_pictures(
    scenes: tuple[Scene, Scene], rng: random.Random
) -> tuple[int, str, list[dict[str, object]]]:
    """A dialog whose pictures are not all at its start: (number of pictures, type, messages)."""
    image: dict[str, object] = {"type": "image"}

    def user(*parts: str | None) -> dict[str, object]:
        content = [image if p is None else {"type": "text", "text": p} for p in parts]
        return {"role": "user", "content": content}

    def assistant(text: str) -> dict[str, object]:
        return {"role": "assistant", "content": text}

    first = None
    while first is None:
        first = ask(rng.choice((*MIX, "followup", "read")), scenes[0], rng)
    text, answer = first.turns[0]
    rest = first.messages()[2:]
    draw = rng.randrange(5)
    if draw == 0:
        hello, back = offtopic.greeting(rng)
        return (
            1,
            "followup",
            [user(hello), assistant(back), user(None, text), assistant(answer), *rest],
        )
    if draw == 1:
        before = any_question(scenes[0], rng)
        opening = [user(before), assistant(w.NO_PICTURE)]
        return 1, "followup", [*opening, user(None, text), assistant(answer), *rest]
    if draw == 2:
        return 1, first.type, [user(text, None), assistant(answer), *rest]
    second = compare(scenes, rng).turns[0]
    if draw == 3:
        opening = [user(None, text), assistant(answer), *rest]
        return 2, "compare", [*opening, user(None, second[0]), assistant(second[1])]
    lead = rng.choice(("look at this:", "here is one:", "picture one:", "first:"))
    then = rng.choice(("and this:", "and another:", "picture two:", "second:"))
    return 2, "compare", [user(lead, None, then, None, second[0]), assistant(second[1])]
