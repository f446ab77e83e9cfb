"""Answer-only loss: over the templates of many families, what is learned is what will be asked for.

Random conversations say what people say: blanks and newlines at the sides of a text, emoji, CJK,
special tokens and headers of the template itself, pictures in any place.
"""

import hashlib
import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mmchat.errors import ModelError
from mmchat.model.loaded_model import LoadedModel
from mmchat.prompt.chat_encoding import EncodedChat, encode_chat
from mmchat.prompt.model_inputs import build_prompt
from mmchat.prompt.pixel_values import image_token_ids
from mmchat.turns import ImagePart, Turn
from tests.model import tiny
from tests.prompt.templates import FAMILIES, Family, spoken, tokenizer_of

PICTURE = ImagePart("0" * 64)
NAMES = sorted(FAMILIES)
# Their templates write no end after an earlier answer, so tokens end where the answer does.
ENDLESS = {"alpaca", "ling"}


def learned(family: Family, encoded: EncodedChat) -> list[str]:
    """What is learned: one text for each unbroken stretch."""
    stretches: list[list[int]] = []
    before = False
    for token, asked in zip(encoded.input_ids, encoded.answer_mask, strict=True):
        if asked and not before:
            stretches.append([])
        if asked:
            stretches[-1].append(token)
        before = asked
    return [spoken(tokenizer_of(family), stretch) for stretch in stretches]


def wanted(family: Family, turns: Sequence[Turn]) -> list[str]:
    """What has to be learned of `turns`, which end with an answer."""
    answers = [turn for turn in turns if turn.role == "assistant"]
    kept = answers if family.earlier else answers[-1:]
    return [
        unicodedata.normalize("NFC", family.produced(_said(turn), last=turn is answers[-1]))
        for turn in kept
    ]


def _said(turn: Turn) -> str:
    return "".join(part for part in turn.parts if isinstance(part, str))


def alike(family: Family, found: Sequence[str], expected: Sequence[str]) -> bool:
    """Equal except for the blank that Llama's tokenizer puts after a special token."""
    blank = family.kind in {"llama", "metaspace"}
    return len(found) == len(expected) and all(
        a == b or (blank and a == " " + b) for a, b in zip(found, expected, strict=True)
    )


def encoded_of(family: Family, turns: Sequence[Turn], *, ask: bool = False) -> EncodedChat:
    """`turns` with one to three tokens for each picture."""
    tokenizer = tokenizer_of(family)
    mark = tokenizer.convert_tokens_to_ids(family.image)
    pictures = sum(isinstance(part, ImagePart) for turn in turns for part in turn.parts)
    tokens = [[mark] * (1 + number % 3) for number in range(pictures)]
    return encode_chat(tokenizer, turns, placeholders=tokens, add_generation_prompt=ask)


def starts(encoded: EncodedChat) -> list[int]:
    """Where each learned stretch begins."""
    mask = [False, *encoded.answer_mask]
    return [at for at, (before, asked) in enumerate(pairwise(mask)) if asked and not before]


# -- what people say ----------------------------------------------------------------------


def texts(family: Family, *, forged: bool = True) -> st.SearchStrategy[str]:
    """Any text; `forged`: also with what could be taken for the template's own words in it."""
    marks = [*family.specials, family.image, *family.meaningful, "<unk>", "<pad>"]
    headers = ["assistant\n", "USER: ", "### Response:\n", "[/INST]", "<role>", "\n\n", "</think>"]
    words = [
        *[*marks, *(mark[:-1] for mark in marks), *headers, " ", "  ", "\n", "\n\n\n", "\t"],
        *["It is red.", "ok", "你好，世界", "🦆🏽‍♂️", "e\u0301", "\u00a0", "x = {{ y }}", "."],
    ]
    if not forged:
        words = [word for word in words if not _forges(family, word) and word + ">" not in marks]
    word = st.sampled_from(words)
    # What the fixtures' decoders cannot tell apart stays out: lone surrogates, and \u2581 as blank.
    free = st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=8
    )
    return st.lists(st.one_of(word, word, free), max_size=5).map("".join)


def _forges(family: Family, text: str) -> bool:
    """Whether `text` has one of the family's control tokens in it."""
    controls = [*tokenizer_of(family).added_tokens_encoder, "</think>"]
    return any(mark in text for mark in controls if mark.strip())


def conversations(family: Family) -> st.SearchStrategy[list[Turn]]:
    """Questions and answers in turn, some with rules before them; the last is an answer."""
    words = texts(family)
    part: st.SearchStrategy[Any] = st.one_of(words, words, st.just(PICTURE))
    return _conversations(words, st.lists(part, max_size=4))


def plain_conversations(family: Family) -> st.SearchStrategy[list[Turn]]:
    """Conversations without pictures and forged tokens, in which each turn says something.

    A template may ask whether there is a text at all; each turn says something in the app.
    """
    words = texts(family, forged=False).map(lambda text: text if text.strip() else f"{text}ok")
    return _conversations(words, st.lists(words, min_size=1, max_size=4))


def _conversations(
    words: st.SearchStrategy[str], question: st.SearchStrategy[list[Any]]
) -> st.SearchStrategy[list[Turn]]:
    user = question.map(lambda parts: Turn("user", tuple(parts)))
    answer = words.map(lambda text: Turn("assistant", (text,)))
    exchanges = st.lists(st.tuples(user, answer), min_size=1, max_size=3)
    system = st.one_of(st.just([]), words.map(lambda text: [Turn("system", (text,))]))
    return st.builds(lambda head, rows: [*head, *(t for r in rows for t in r)], system, exchanges)


def everywhere(
    check: Callable[[Family, list[Turn]], None],
    strategy: Callable[[Family], st.SearchStrategy[list[Turn]]] = conversations,
) -> Any:
    """The check over every family: a few conversations here, many as a slow test."""

    def few(name: str) -> None:
        _run(check, FAMILIES[name], strategy, 15)

    def many(name: str) -> None:
        _run(check, FAMILIES[name], strategy, 100)

    few, many = (pytest.mark.parametrize("name", NAMES)(test) for test in (few, many))
    return few, pytest.mark.slow(many)


def _run(
    check: Callable[[Family, list[Turn]], None],
    family: Family,
    strategy: Callable[[Family], st.SearchStrategy[list[Turn]]],
    count: int,
) -> None:
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy(family))
    def run(turns: list[Turn]) -> None:
        check(family, turns)

    run()


# -- the properties -----------------------------------------------------------------------


def answers_alone(family: Family, turns: list[Turn]) -> None:
    encoded = encoded_of(family, turns)
    assert alike(family, learned(family, encoded), wanted(family, turns))


def behind_the_prompt(family: Family, turns: list[Turn]) -> None:
    encoded = encoded_of(family, turns)
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    kept = [number for number in answers if number not in encoded.unlearnable_turns]
    assert kept == (answers if family.earlier else answers[-1:])
    for number, start in zip(kept, starts(encoded), strict=True):
        prompt = encoded_of(family, turns[:number], ask=True)
        assert prompt.input_ids == encoded.input_ids[:start]
        assert prompt.images == [span for span in encoded.images if span[0] < start]


def every_answer_once(family: Family, turns: list[Turn]) -> None:
    whole = encoded_of(family, turns)
    beginnings = [turns[: number + 1] for number in whole.unlearnable_turns]
    texts = [text for said in beginnings for text in learned(family, encoded_of(family, said))]
    answers = [turn for turn in turns if turn.role == "assistant"]
    expected = [
        unicodedata.normalize("NFC", family.produced(_said(turn), last=True)) for turn in answers
    ]
    if family.earlier:
        assert not beginnings
    else:
        assert alike(family, [*texts, *learned(family, whole)], expected)


def pictures_whole(family: Family, turns: list[Turn]) -> None:
    mark = tokenizer_of(family).convert_tokens_to_ids(family.image)
    encoded = encoded_of(family, turns)
    pictures = sum(isinstance(part, ImagePart) for turn in turns for part in turn.parts)
    assert [length for _, length in encoded.images] == [1 + n % 3 for n in range(pictures)]
    of_pictures = [at for start, length in encoded.images for at in range(start, start + length)]
    assert of_pictures == [at for at, token in enumerate(encoded.input_ids) if token == mark]
    assert not any(encoded.answer_mask[at] for at in of_pictures)


def as_stock(family: Family, turns: list[Turn]) -> None:
    """Where nothing is meant to differ: a forged token, an end that is missing, an opened thought."""
    tokenizer = tokenizer_of(family)
    assume(not any(_forges(family, _said(turn)) for turn in turns))
    text = _stock_text(family, turns)
    stock = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    encoded = encoded_of(family, turns)
    ours = encoded.input_ids
    if family.added:
        end = tokenizer.convert_tokens_to_ids(family.added)
        assert ours[-1] == end
        ours = ours[:-1]
    if family.opened or family.name in ENDLESS or _lies_over(family, turns, text, stock):
        # The words are still the same.
        words, found = "".join(text.split()), "".join(spoken(tokenizer, ours).split())
        if family.opened:
            found = found.replace("<think></think>", "")
        assert found == "".join(unicodedata.normalize("NFC", words).split())
    else:
        assert ours == stock["input_ids"]
        assert ours == _stock_ids(family, turns)


def _messages(family: Family, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    parts = family.name in {"llava", "smolvlm"}  # these take no string
    said = [(turn.role, _said(turn)) for turn in turns]
    if family.folds and said[0][0] == "system":
        said = [("user", f"{said[0][1]}\n\n{said[1][1]}"), *said[2:]]
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
        for role, text in said
    ]


def _stock_text(family: Family, turns: Sequence[Turn], **more: Any) -> str:
    text: str = tokenizer_of(family).apply_chat_template(
        _messages(family, turns), tokenize=False, **more
    )
    return text


def _stock_ids(family: Family, turns: Sequence[Turn]) -> list[int]:
    ids: list[int] = tokenizer_of(family).apply_chat_template(
        _messages(family, turns), tokenize=True, return_dict=False
    )
    return ids


def _lies_over(family: Family, turns: Sequence[Turn], text: str, stock: Any) -> bool:
    """Whether a token of transformers' rendering extends over the end of a prompt."""
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt = _stock_text(family, turns[:number], add_generation_prompt=True)
        if text.startswith(prompt):
            edge = len(prompt)
            if any(start < edge < end for start, end in stock["offset_mapping"]):
                return True
    return False


test_the_answers_and_their_ends_alone_are_learned, test_many_answers_alone = everywhere(
    answers_alone
)
test_each_answer_begins_behind_its_prompt, test_many_behind_their_prompts = everywhere(
    behind_the_prompt
)
test_each_answer_is_learned_once, test_many_learned_once = everywhere(every_answer_once)
test_pictures_are_whole_and_not_learned, test_many_pictures = everywhere(pictures_whole)
test_tokens_are_those_of_transformers_rendering, test_many_stock_renderings = everywhere(
    as_stock, plain_conversations
)


# -- known cases --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_known_conversation(name: str) -> None:
    family = FAMILIES[name]
    turns = [
        Turn("system", ("Be brief.",)),
        Turn("user", (PICTURE, "What colour is it?")),
        Turn("assistant", ("It is red.",)),
        Turn("user", ("And ", PICTURE, "?", PICTURE)),
        Turn("assistant", ("Blue.",)),
    ]
    encoded = encoded_of(family, turns)
    expected = [family.produced("It is red.", last=False)] if family.earlier else []
    expected.append(family.produced("Blue.", last=True))
    assert alike(family, learned(family, encoded), expected)
    assert encoded.unlearnable_turns == (() if family.earlier else (2,))
    assert [length for _, length in encoded.images] == [1, 2, 3]


def test_no_token_extends_over_the_beginning_of_an_answer() -> None:
    """The header's newline and the answer's own would be one token, which the model is never asked for."""
    family = FAMILIES["qwen2"]
    tokenizer = tokenizer_of(family)
    turns = [Turn("user", ("what?",)), Turn("assistant", ("\n\nIt is red.",))]
    prompt = encoded_of(family, turns[:1], ask=True).input_ids
    text = _stock_text(family, turns)
    assert tokenizer(text, add_special_tokens=False)["input_ids"][: len(prompt)] != prompt
    encoded = encoded_of(family, turns)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert learned(family, encoded) == ["\n\nIt is red.<|im_end|>"]


def test_blanks_that_a_special_token_would_absorb_are_kept_for_an_answer() -> None:
    family = FAMILIES["phi35"]
    turns = [Turn("user", ("what?",)), Turn("assistant", ("  red",))]
    assert learned(family, encoded_of(family, turns)) == ["  red<|end|>"]


def test_answers_in_a_row_are_one_if_the_template_joins_them() -> None:
    turns = [Turn("user", ("what?",)), Turn("assistant", ("One.",)), Turn("assistant", ("Two.",))]
    gemma, chatml = FAMILIES["gemma2"], FAMILIES["chatml"]
    assert learned(gemma, encoded_of(gemma, turns)) == ["One.\n\nTwo.<end_of_turn>"]
    assert learned(chatml, encoded_of(chatml, turns)) == ["One.<|im_end|>", "Two.<|im_end|>"]


def test_a_picture_in_an_answer_is_not_learned_nor_the_template_around_it() -> None:
    family = FAMILIES["qwen2_vl"]
    turns = [
        Turn("user", ("what?",)),
        Turn(
            "assistant",
            (
                "One ",
                PICTURE,
                " two.",
            ),
        ),
    ]
    assert learned(family, encoded_of(family, turns)) == ["One ", " two.<|im_end|>"]


def test_an_answer_that_is_not_the_last_turn_is_learned_as_the_template_ends_it() -> None:
    turns = [Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("c",))]
    for name in NAMES:
        family = FAMILIES[name]
        expected = [family.produced("b", last=False)] if family.earlier else []
        assert alike(family, learned(family, encoded_of(family, turns)), expected), name


def test_a_template_that_leaves_out_the_last_answer_is_an_error() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' or not loop.last %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    tokenizer = tiny.tokenizer(template, ["<pad>", "<end>"], eos="<end>")
    with pytest.raises(ModelError, match="it leaves out a part of the conversation"):
        encode_chat(tokenizer, [Turn("user", ("a",)), Turn("assistant", ("b",))])


# -- pictures' tokens and features -------------------------------------------------------------


def _random_chat(random: random.Random, pictures: Sequence[ImagePart]) -> list[Turn]:
    words = ["what?", "red", "<image>", "<|image_pad|>", "", "  ", "\n", "🦆", "你好", "[1]"]

    def parts(shown: bool) -> tuple[Any, ...]:
        drawn = [random.choice(words) for _ in range(random.randrange(3))]
        if shown:
            for _ in range(random.choice([0, 1, 1, 2, 3])):
                drawn.insert(random.randrange(len(drawn) + 1), random.choice(pictures))
        return tuple(drawn)

    turns = [Turn("system", parts(False))] if random.random() < 0.3 else []
    for _ in range(random.randrange(3)):
        turns += [Turn("user", parts(True)), Turn("assistant", parts(False))]
    return [*turns, Turn("user", parts(True))]


def _features(model: Any, inputs: dict[str, Any]) -> int:
    """Rows of embeddings that the model makes of the pictures."""
    made = model.get_image_features(**inputs)
    found = getattr(made, "pooler_output", made)
    rows = found if isinstance(found, (list, tuple)) else [found]
    return sum(row.reshape(-1, row.shape[-1]).shape[0] for row in rows)


def _count(loaded: LoadedModel, chats: int, seed: int) -> None:
    """Random chats: as many picture tokens as features, of the same pictures, in order."""
    draw = random.Random(seed)
    sizes = [(48, 40), (100, 30), (30, 100), (64, 64), (17, 90), (33, 32), (90, 90), (8, 8)]
    pictures = [tiny.shown(number, size) for number, size in enumerate(sizes)]
    of_pictures = torch.tensor(image_token_ids(loaded.processor))
    known: dict[tuple[str, ...], int] = {}
    # There is room for some only; what is left out loses its pictures too.
    small = replace(loaded, context_length=160)
    for _ in range(chats):
        turns = _random_chat(draw, pictures)
        shown = [part for turn in turns for part in turn.parts if isinstance(part, ImagePart)]
        chosen = small if draw.random() < 0.5 else loaded
        try:
            prompt = build_prompt(chosen, turns, 16)
        except ModelError as error:
            assert "takes" in str(error)
            continue
        kept = tuple(span.sha256 for span in prompt.images)
        assert kept == tuple(part.sha256 for part in shown)[len(shown) - len(kept) :]
        if kept and kept not in known:
            names = ("mm_token_type_ids", "token_type_ids")
            inputs = {k: v for k, v in prompt.model_inputs.items() if k not in names}
            with torch.no_grad():
                known[kept] = _features(loaded.model.model, inputs)
        tokens = int(torch.isin(prompt.input_ids, of_pictures).sum())
        assert tokens == prompt.image_tokens == known.get(kept, 0)


@pytest.mark.parametrize("kind", sorted(tiny.SEEING))
def test_picture_tokens_are_as_many_as_features(
    loaded: Callable[[str, str], LoadedModel], kind: str
) -> None:
    _count(loaded(kind, "fp32"), 20, seed=int(hashlib.sha256(kind.encode()).hexdigest()[:8], 16))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(tiny.SEEING))
def test_ten_thousand_chats_without_a_mismatch(
    loaded: Callable[[str, str], LoadedModel], kind: str
) -> None:
    # Seven kinds, 10,003 chats.
    _count(loaded(kind, "fp32"), 1429, seed=len(kind))
