"""Rows of a table or an Alpaca file: a question and answer, a caption, or a label."""

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from string import ascii_uppercase

from mmchat.data.fields import (
    ANSWER_KEYS,
    CAPTION_KEYS,
    CHOICE_KEYS,
    CHOICE_LETTERS,
    CONTEXT_KEYS,
    LABEL_KEYS,
    QUESTION_KEYS,
    SYSTEM_KEYS,
    Fields,
)
from mmchat.data.question_wordings import caption_question, class_label, class_question
from mmchat.data.types import Picture, SampleError, type_name

Chat = list[Fields]
"""Messages, each with `role` and `content`."""


def row_chats(
    fields: Fields, images: Sequence[Picture], label_names: Mapping[str, Sequence[str]]
) -> tuple[list[Chat], str]:
    """Returns the conversations of a row, and its label or "". Raises SampleError."""
    question = _text(fields, QUESTION_KEYS)
    label = _label(fields, label_names)
    before = [*system_messages(fields), *_history(fields)]
    if question:
        choices = _choices(fields)
        answers = [_answer(fields, choices) or label]
        question = _whole_question(fields, question, choices)
    elif not images:
        raise SampleError("it has neither a picture nor a question")
    elif captions := _captions(fields):
        answers, question = captions, caption_question(images[0].sha256)
    else:
        answers, question = [label], class_question(images[0].sha256)
    chats = [
        [*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for answer in answers
    ]
    return chats, label


def system_messages(fields: Fields) -> Chat:
    """The system message in a field of its own, if there is one. Raises SampleError."""
    for key in SYSTEM_KEYS:
        value = fields.get(key)
        if isinstance(value, str):
            return [{"role": "system", "content": value}]
        if value is not None and value == value:  # tables use NaN for an empty cell
            raise SampleError(f"its {key} is {type_name(value)}, not text")
    return []


def _history(fields: Fields) -> Chat:
    """Alpaca's `history`: the question-answer pairs before the question. Raises SampleError."""
    history = fields.get("history")
    if not history or history != history:
        return []
    pairs = history if isinstance(history, list) else [None]
    chat: Chat = []
    for pair in pairs:
        if isinstance(pair, dict) and "role" in pair:
            chat.append({"role": pair["role"], "content": pair.get("content")})
            continue
        if isinstance(pair, dict):
            pair = [
                pair.get("user", pair.get("question")),
                pair.get("assistant", pair.get("answer")),
            ]
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(t, str) for t in pair)
        ):
            raise SampleError("its history is not a list of (question, answer) pairs")
        chat += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return chat


def _whole_question(fields: Fields, question: str, choices: Sequence[str]) -> str:
    """The context, the question, Alpaca's input and the choices, as one text."""
    lines = [_text(fields, CONTEXT_KEYS), question, _as_text(fields.get("input"))]
    if not all(choice in question for choice in choices):
        # A single text has its letters already.
        lettered = [
            f"{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False)
        ]
        lines += lettered if len(choices) > 1 else choices
    return "\n".join(line for line in lines if line)


def _choices(fields: Fields) -> list[str]:
    """The choices of a multiple-choice question; empty if there are none. Raises SampleError."""
    for key in CHOICE_KEYS:
        value = fields.get(key)
        if isinstance(value, dict):  # {"text": […], "label": ["A", …]}
            value = value.get("text")
        if isinstance(value, str):
            value = _parsed(value)
        if isinstance(value, list) and value:
            texts = [_as_text(one) for one in value]
            if not all(texts) or len(texts) > len(ascii_uppercase):
                raise SampleError(f"its {key} are not texts")
            return texts
    texts = []
    for letter in CHOICE_LETTERS:
        text = _as_text(fields.get(letter))
        if not text:
            break
        texts.append(text)
    return texts if len(texts) > 1 else []


def _parsed(text: str) -> object:
    """Parses a cell with a Python list; any other text is a single choice."""
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        if text.startswith("["):
            return ast.literal_eval(text)
    return [text] if text.strip() else []


def _answer(fields: Fields, choices: Sequence[str]) -> str:
    """The answer; of several, the most frequent one."""
    for key in ANSWER_KEYS:
        value = fields.get(key)
        if isinstance(value, list):
            texts = [_as_text(one.get("answer") if isinstance(one, dict) else one) for one in value]
            texts = [text for text in texts if text]
            if texts:
                return Counter(texts).most_common(1)[0][0]
        elif text := _as_text(value):
            return _choice_letter(key, text, choices)
    return ""


def _choice_letter(key: str, answer: str, choices: Sequence[str]) -> str:
    """The letter of an answer that is the index of a choice; any other answer unchanged."""
    if len(choices) < 2 or answer in choices or not re.fullmatch(r"\d{1,2}", answer):
        return answer
    if int(answer) >= len(choices):
        raise SampleError(
            f"its {key} is {answer}, but it has {len(choices)} choices, numbered from 0"
        )
    return ascii_uppercase[int(answer)]


def _captions(fields: Fields) -> list[str]:
    for key in CAPTION_KEYS:
        value = fields.get(key)
        texts = [_as_text(one) for one in value] if isinstance(value, list) else [_as_text(value)]
        texts = [text for text in texts if text]
        if texts:
            return texts
    return []


def _label(fields: Fields, label_names: Mapping[str, Sequence[str]]) -> str:
    for key in LABEL_KEYS:
        value = fields.get(key)
        names = label_names.get(key)
        if names and isinstance(value, int):
            if not 0 <= value < len(names):
                raise SampleError(f"its {key} is {value}, but there are only {len(names)} classes")
            return class_label(str(names[value]))
        if text := _as_text(value):
            return class_label(text)
    return ""


def _text(fields: Fields, keys: Sequence[str]) -> str:
    """The first non-empty value of `keys` as text; "" if there is none."""
    return next((text for key in keys if (text := _as_text(fields.get(key)))), "")


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "yes" if value else "no"
    # Tables use NaN, which does not equal itself, for an empty cell.
    return str(value) if isinstance(value, int | float) and value == value else ""
