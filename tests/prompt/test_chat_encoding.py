"""encode_chat with the templates of many families, and with hostile input."""

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mmchat.errors import ModelError
from mmchat.prompt.chat_encoding import EncodedChat, answer_end, encode_chat
from mmchat.turns import ImagePart, Turn
from tests.model import tiny
from tests.prompt.templates import FAMILIES, tokenizer_of

PICTURE = ImagePart("0" * 64)
EXCHANGE = [Turn("user", ("What colour is it?",)), Turn("assistant", ("It is red.",))]


TOKENIZERS = {name: tokenizer_of(family) for name, family in FAMILIES.items()}


def produced(tokenizer: PreTrainedTokenizerFast, encoded: EncodedChat) -> list[str]:
    """The stretches under the mask, decoded."""
    stretches: list[list[int]] = []
    before = False
    for token, asked in zip(encoded.input_ids, encoded.answer_mask, strict=True):
        if asked:
            if not before:
                stretches.append([])
            stretches[-1].append(token)
        before = asked
    return [tokenizer.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tokens_are_those_of_transformers_rendering(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    turns = [*EXCHANGE, Turn("user", ("and how big?",))]
    shapes: list[object] = [
        [{"role": t.role, "content": t.parts[0]} for t in turns],
        [{"role": t.role, "content": [{"type": "text", "text": t.parts[0]}]} for t in turns],
    ]
    ours = encode_chat(tokenizer, turns, add_generation_prompt=True)
    stock = []
    for messages in shapes:
        try:
            stock.append(
                tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
            )
        except Exception:
            # A template accepts one of the two content formats or both.
            continue
    assert ours.input_ids in stock


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_system_prompt_is_always_included(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    turns = [Turn("system", ("Be brief.",)), *EXCHANGE]
    text = tokenizer.decode(encode_chat(tokenizer, turns).input_ids)
    if name == "phi3":
        # It skips a role that it does not know, so the words go into the first turn.
        assert "<|user|> Be brief.\n\nWhat colour" in text
    assert text.count("Be brief.") == 1 and text.index("Be brief.") < text.index("What colour")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_bos_comes_once(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    encoded = encode_chat(tokenizer, EXCHANGE)
    if tokenizer.bos_token_id is not None:
        assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
        assert encoded.input_ids[0] == tokenizer.bos_token_id


def test_a_tokenizer_that_adds_bos_by_itself() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer(
        tiny.LLAVA, ["<pad>", "<s>", "</s>", "<image>"], eos="</s>", bos="<s>"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    encoded = encode_chat(tokenizer, EXCHANGE)
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert produced(tokenizer, encoded) == [" It is red.</s>"]


def test_repeated_roles_are_joined_for_a_strict_template() -> None:
    tokenizer = TOKENIZERS["gemma2"]
    turns = [Turn("user", ("one",)), Turn("user", ("two",))]
    text = tokenizer.decode(encode_chat(tokenizer, turns).input_ids)
    assert "one\n\ntwo" in text


def test_a_template_that_trims_also_trims_people() -> None:
    tokenizer = TOKENIZERS["llama3"]
    trimmed = encode_chat(tokenizer, [Turn("user", ("  hello \n",))]).input_ids
    assert trimmed == encode_chat(tokenizer, [Turn("user", ("hello",))]).input_ids
    kept = TOKENIZERS["chatml"]
    assert "  hello \n" in kept.decode(encode_chat(kept, [Turn("user", ("  hello \n",))]).input_ids)


@pytest.mark.parametrize("name", ["chatml", "llava", "smolvlm", "llama3", "mistral_v7"])
def test_pictures_are_where_people_put_them(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    mark = tokenizer.convert_tokens_to_ids(FAMILIES[name].image)
    turns = [
        Turn("user", ("one ", PICTURE, " two", PICTURE, PICTURE)),
        Turn("assistant", ("It is red.",)),
        Turn("user", (PICTURE, "three")),
    ]
    tokens = [[mark] * 3, [mark], [mark] * 2, [mark] * 4]
    encoded = encode_chat(tokenizer, turns, placeholders=tokens)
    assert [length for _, length in encoded.images] == [3, 1, 2, 4]
    for (start, length), wanted in zip(encoded.images, tokens, strict=True):
        assert encoded.input_ids[start : start + length] == wanted
        assert not any(encoded.answer_mask[start : start + length])
    ends = [0, *(start + length for start, length in encoded.images)]
    between = [
        tokenizer.decode(encoded.input_ids[a:b])
        for a, b in zip(ends, [s for s, _ in encoded.images] + [None], strict=True)
    ]
    assert between[0].endswith("one ")
    # Llama's tokenizer puts a blank after a special token.
    assert between[1].removeprefix(" ") in ("two", " two") and between[2] == ""
    assert "It is red." in between[3] and "three" in between[4]


def test_the_end_of_an_answer_is_found() -> None:
    for name, family in FAMILIES.items():
        tokenizer = TOKENIZERS[name]
        end = answer_end(tokenizer)
        assert end is not None
        assert family.produced("a", last=True).endswith(tokenizer.convert_ids_to_tokens(end))


def test_a_missing_template_is_an_error() -> None:
    tokenizer = tiny.tokenizer(None, ["<pad>", "<end>"], eos="<end>")
    with pytest.raises(ModelError, match="has no chat template"):
        encode_chat(tokenizer, EXCHANGE)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only for tools') }}",
        "{{ messages[0].tool_calls.id }}",
        "nothing of the conversation",
        "{% for m in messages %}{{ m.content",
        "{{ ''.__class__.__mro__ }}{{ messages[0].content }}",
    ],
)
def test_a_failing_template_is_an_error(template: str) -> None:
    tokenizer = tiny.tokenizer(template, ["<pad>", "<end>"], eos="<end>")
    with pytest.raises(ModelError, match=r"chat template of .* cannot be used"):
        encode_chat(tokenizer, EXCHANGE)


def _texts(name: str) -> st.SearchStrategy[str]:
    """What people type, including every special token of the tokenizer, whole and in pieces."""
    specials = list(TOKENIZERS[name].added_tokens_encoder)
    pieces = [special[: len(special) // 2] for special in specials] + [s[1:] for s in specials]
    word = st.sampled_from(
        [
            *specials,
            *pieces,
            " ",
            "\n",
            "[1]",
            "hello",
            "\ue000",
            "\ue0000\ue001",
            "{{ bos_token }}",
        ]
    )
    return st.lists(st.one_of(word, word, st.text(max_size=6)), max_size=6).map("".join)


def _conversations(name: str) -> st.SearchStrategy[list[Turn]]:
    part = st.one_of(_texts(name), _texts(name), st.just(PICTURE))
    user = st.lists(part, max_size=4).map(lambda parts: Turn("user", tuple(parts)))
    answer = _texts(name).map(lambda text: Turn("assistant", (text,)))
    system = _texts(name).map(lambda text: [Turn("system", (text,))])
    rows = st.lists(st.tuples(user, answer), max_size=3).map(
        lambda rows: [t for r in rows for t in r]
    )
    return st.builds(
        lambda head, rows, last: [*head, *rows, last], st.one_of(st.just([]), system), rows, user
    )


def _check(name: str, turns: list[Turn], lengths: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    mark = tokenizer.convert_tokens_to_ids(FAMILIES[name].image)
    pictures = sum(isinstance(part, ImagePart) for turn in turns for part in turn.parts)
    tokens = [[mark] * lengths[i % len(lengths)] for i in range(pictures)]
    encoded = encode_chat(tokenizer, turns, placeholders=tokens, add_generation_prompt=True)
    # As many picture tokens as features, in order, apart from each other.
    assert encoded.input_ids.count(mark) == sum(map(len, tokens))
    assert [length for _, length in encoded.images] == [len(t) for t in tokens]
    ends = [start + length for start, length in encoded.images]
    assert all(end <= start for end, (start, _) in zip(ends, encoded.images[1:], strict=False))
    # No special token comes from people: the same turns with harmless words have the same ones.
    harmless = [
        Turn(t.role, tuple("x" if isinstance(p, str) and p else p for p in t.parts)) for t in turns
    ]
    plain = encode_chat(tokenizer, harmless, placeholders=tokens, add_generation_prompt=True)
    # Gemma has added tokens of white space, which are ordinary text.
    added = tokenizer.added_tokens_decoder.items()
    special = {i for i, token in added if token.content.replace("\u2581", " ").strip()}
    assert [i for i in encoded.input_ids if i in special] == [
        i for i in plain.input_ids if i in special
    ]
    # No words are lost: the decoded prompt contains all of them, in order.
    # Some tokenizers replace a character by one of the same look (U+F900 by U+8C48): NFC.
    text, at = tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False), 0
    text = unicodedata.normalize("NFC", text)
    for turn in turns:
        for part in turn.parts:
            if isinstance(part, str):
                # SentencePiece does not distinguish its symbol for a blank from a blank.
                word = part.replace("\u2581", " ").strip().encode("utf-8", "replace").decode()
                word = unicodedata.normalize("NFC", word)
                assert word in text[at:]
                at = text.index(word, at) + len(word)


SEEING = ["chatml", "llava", "smolvlm", "gemma3", "mistral_v7"]


@pytest.mark.parametrize("name", SEEING)
def test_random_conversations(name: str) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_conversations(name), st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def run(turns: list[Turn], lengths: list[int]) -> None:
        _check(name, turns, lengths)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEING)
def test_two_thousand_random_conversations(name: str) -> None:
    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_conversations(name), st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def run(turns: list[Turn], lengths: list[int]) -> None:
        _check(name, turns, lengths)

    run()
