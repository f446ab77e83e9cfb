"""Pieces of text add up to the whole, and nothing is shown that must be taken back."""

import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmchat.engine.detokenize import (
    ByteLevelDetokenizer,
    StopStrings,
    WindowDetokenizer,
    detokenizer_for,
)

CORPUS = [
    "the red circle is above the blue square",
    "It is red. What colour is it? größer über naïve café",
    "picture [1] shows  two   circles\nand a line",
    "漢字とかな, 한국어, emoji 😀👍🏽 done",
]
SPECIAL = ["<|start|>", "<|end|>"]


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<plain added ü>"])
    tokenizer.add_special_tokens([AddedToken("<|unnamed|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@functools.cache
def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Metaspace and byte fallback, as Llama 2 and Gemma have them."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", *SPECIAL])}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for letter in sorted({*"".join(CORPUS[:3]).replace(" ", "▁")}):
        vocabulary.setdefault(letter, len(vocabulary))
    merges = []
    for left, right in [("▁", "t"), ("h", "e"), ("▁t", "he"), ("r", "e"), ("▁", "re"), ("▁", "▁")]:
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def stream(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    detokenizer = detokenizer_for(tokenizer)
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


def whole(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


text = st.text(max_size=30) | st.text(alphabet="the rd▁😀👍🏽é漢\n\ufffd", max_size=30)


def test_each_kind_gets_its_detokenizer() -> None:
    assert isinstance(detokenizer_for(byte_level()), ByteLevelDetokenizer)
    assert isinstance(detokenizer_for(sentencepiece_like()), WindowDetokenizer)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
@given(content=text)
def test_pieces_add_up_to_the_decoded_whole(make: object, content: str) -> None:
    tokenizer = make()  # type: ignore[operator]
    ids = tokenizer.encode(content, add_special_tokens=False)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == whole(tokenizer, ids)
    if "\ufffd" not in content:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 330), max_size=60))
def test_any_tokens_at_all_through_a_byte_level_bpe(ids: list[int]) -> None:
    tokenizer = byte_level()
    ids = [token for token in ids if token < len(tokenizer)]
    assert "".join(stream(tokenizer, ids)) == whole(tokenizer, ids)


@given(st.lists(st.integers(0, 320), max_size=60))
def test_any_tokens_at_all_are_never_held_for_long(ids: list[int]) -> None:
    tokenizer = sentencepiece_like()
    ids = [token for token in ids if token < len(tokenizer)]
    detokenizer = WindowDetokenizer(tokenizer)
    for token in ids:
        detokenizer.push(token)
        assert len(detokenizer._window) <= 20
    detokenizer.finish()


def test_a_character_appears_with_its_last_byte() -> None:
    for tokenizer in (byte_level(), sentencepiece_like()):
        ids = tokenizer.encode("a🛸b", add_special_tokens=False)
        pieces = stream(tokenizer, ids)
        assert [piece for piece in pieces if piece] == ["a", "🛸", "b"]


def test_an_unfinished_character_is_shown_at_the_end_only() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a🛸", add_special_tokens=False)[:-1]
    pieces = stream(tokenizer, ids)
    assert (pieces[0], pieces[-1]) == ("a", "\ufffd")


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_special_tokens_have_no_text_and_keep_the_space_after_them(make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL)
    ids = tokenizer.encode("the red", add_special_tokens=False)
    ids = [start, *ids[:-1], end, *ids[-1:], end]
    assert "".join(stream(tokenizer, ids)) == whole(tokenizer, ids) == "the red"


def test_special_tokens_without_a_name_are_skipped_and_added_words_are_not() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a<|unnamed|>b<plain added ü>c", add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == whole(tokenizer, ids) == "ab<plain added ü>c"


def cut(content: str, borders: list[int]) -> list[str]:
    places = sorted({0, len(content), *(border % (len(content) + 1) for border in borders)})
    return [content[a:b] for a, b in itertools.pairwise(places)]


def naive_stop(content: str, stops: list[str]) -> tuple[str, bool]:
    for end in range(1, len(content) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if stop and content[:end].endswith(stop):
                return content[: end - len(stop)], True
    return content, False


@given(
    st.text(alphabet="ab\n", max_size=24),
    st.lists(st.text(alphabet="ab\n", max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=12),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(
    content: str, stops: list[str], borders: list[int]
) -> None:
    expected, stopped = naive_stop(content, stops)
    filter_ = StopStrings(stops)
    shown = ""
    for piece in cut(content, borders):
        shown += filter_.push(piece)
        assert expected.startswith(shown)  # never shown too much, not even for a moment
    assert (shown + filter_.finish(), filter_.stopped) == (expected, stopped)


def test_only_the_undecided_end_is_held_back() -> None:
    filter_ = StopStrings(["User:"])
    assert filter_.push("Hello Us") == "Hello "
    assert filter_.push("ed") == "Used"
    assert filter_.push(" U") == " "
    assert filter_.finish() == "U"
