"""Search: any string is safe, what is found has the words, what has the words is found."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmchat.history import History, Origin

TEXTS = [
    "The red kite circled over the barn at noon.",
    "Is the blue triangle left of the red circle?",
    "Ein Café in Zürich, naïve façade; über 42 Stühle",
    "東京都庁に行くには新宿駅で降りてください。",
    "北京大学在海淀区，离圆明园很近。",
    "서울특별시의 날씨는 어떻습니까?",
    "ภาพนี้มีวงกลมสีแดงสามวง",
    "iPhone東京 mixed with words and 漢字 in one line",
    "NEAR AND OR NOT text: {text} ^ * \" ' ( ) - + <b>x</b> \x1b[31m \x02mark\x03",
    "nul\0inside 東\0京 of it",
    "Καλημέρα κόσμε, Привет мир, שלום עולם, مرحبا بالعالم",
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    path: Path = tmp_path_factory.mktemp("search") / "history.db"
    with History.open(path) as history:
        for text in TEXTS:
            conversation = history.new_conversation().id
            history.add_message(conversation, "user", text)
            answer = history.begin_answer(conversation, origin=Origin("scenes"))
            answer.append(text[: len(text) // 2])
            answer.append(text[len(text) // 2 :])
            answer.finish()
        yield history


def folded(text: str) -> str:
    """Case and accents taken off, as the word index does."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c))


queries = st.one_of(
    st.text(alphabet=st.characters(codec=None), max_size=40),  # surrogates and NUL too
    st.text(alphabet="\"'*^()-+:{}<>\\ \0\ud800 NEARANDORNOTtext東京a.1%_", max_size=30),
    st.lists(st.sampled_from(" ".join(TEXTS).split()), max_size=6).map(" ".join),
)


@settings(max_examples=400, deadline=None)
@given(query=queries)
def test_any_query_is_safe_and_every_hit_has_its_words(filled: History, query: str) -> None:
    for hit in filled.search(query):
        text = folded(filled.message(hit.message_id).text)
        for word in query.replace("\ud800", " ").split():
            for part in "".join(c if c.isalnum() and c.isascii() else " " for c in word).split():
                assert part.lower() in text
        assert not any(unicodedata.category(c)[0] == "C" for c in hit.snippet)
        assert all(0 <= start < end <= len(hit.snippet) for start, end in hit.marks)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_beginning_of_a_word_and_every_set_of_words_is_found(
    filled: History, data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from([0, 1, 2, 10]))
    words = "".join(c if c.isalnum() else " " for c in TEXTS[number]).split()
    chosen = data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=4))
    cut = data.draw(st.integers(1, len(chosen[-1])))
    query = " ".join([*chosen[:-1], chosen[-1][:cut]])
    query = data.draw(st.sampled_from([query, query.upper(), query.lower()]))
    if "ß" in query or "SS" in query:
        return  # upper-casing is not one to one there
    assert TEXTS[number] in {filled.message(h.message_id).text for h in filled.search(query, 50)}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_every_part_of_an_unspaced_run_is_found(filled: History, data: st.DataObject) -> None:
    text = TEXTS[data.draw(st.integers(3, 7))]
    run = max(text.split(), key=len)
    start = data.draw(st.integers(0, len(run) - 1))
    part = run[start : data.draw(st.integers(start + 1, len(run)))]
    if part.isascii() or all(unicodedata.category(c)[0] not in "L" for c in part):
        return
    hits = filled.search(part, 50)
    assert text in {filled.message(h.message_id).text for h in hits}
    for hit in hits:
        assert part in filled.message(hit.message_id).text
        assert [hit.snippet[a:b] for a, b in hit.marks][:1] == [part]


def test_marks_show_the_words(filled: History) -> None:
    hit = filled.search("CAFE zuri")[0]
    assert [hit.snippet[a:b] for a, b in hit.marks] == ["Café", "Zürich"]
    assert hit.title.startswith("Ein Café")
    hit = filled.search("東京")[0]
    assert {hit.snippet[a:b] for a, b in hit.marks} == {"東京"}
    assert filled.search("wit 漢字") == filled.search("漢字 WIT") != []


def test_all_words_are_wanted(filled: History) -> None:
    assert len(filled.search("red")) == 4
    assert len(filled.search("red kite")) == 2
    assert filled.search("red zebra") == []
    assert len(filled.search("re ki")) == 0  # only the last is a beginning


@pytest.mark.parametrize("query", ["", " ", "\0", "\ud800", '"', "***", "()", "-", "🐦"])
def test_a_query_without_words_finds_nothing(filled: History, query: str) -> None:
    assert filled.search(query) == []


def test_the_limit_holds(filled: History) -> None:
    assert len(filled.search("i", limit=3)) == 3
    assert filled.search("red", limit=0) == []
    assert filled.search("red " * 5_000, limit=1)[0].message_id


def test_a_title_that_a_person_gave_is_found(history: History) -> None:
    invoice = history.new_conversation().id
    history.add_message(invoice, "user", "what does it say?")
    head = history.add_message(invoice, "assistant", "42 EUR")
    history.rename(invoice, "Café invoices\x1b, 2024 東京")
    written = history.new_conversation().id
    history.add_message(written, "user", "a cafe with invoices")
    for query in ("cafe inv", "INVOICES café", "2024", "京"):
        hit = history.search(query)[0]
        assert (hit.message_id, hit.conversation_id) == (head.id, invoice)
        assert hit.snippet == "Café invoices , 2024 東京"
    first, second = history.search("CAFE inv")
    assert [first.snippet[a:b] for a, b in first.marks] == ["Café", "inv"]
    assert second.conversation_id == written
    assert history.search("caf inv") == history.search("afe") == []
    assert len(history.search("say")) == 1


SYMBOLS = [
    "I write C++ and C# code",
    "a cat on a mat",
    "ca* is a glob",
    "party \U0001f389 time",
    "I ❤️ you",
    "only ❤",
    "x -> y and x => z",
    "50% off, costs $5 or 5€",
    "see std::vector",
    "AT&T and R&D",
    "key 1️⃣",
    "f(x)=a+b",
    "東京\U0001f389",
    "naïve+ x",
    "family \U0001f469\u200d\U0001f467 here",
]


@pytest.mark.parametrize(
    ("query", "marks"),
    [
        ("C++", [["C++"]]),
        ("c#", [["C#"]]),
        ("code c++", [["C++", "code"]]),
        ("ca*", [["ca*"]]),
        ("\U0001f389", [["\U0001f389"], ["\U0001f389"]]),
        ("\U0001f389 par", [["par", "\U0001f389"]]),
        ("東京\U0001f389", [["東京\U0001f389"]]),
        ("東京 \U0001f389", [["東京", "\U0001f389"]]),
        ("❤️", [["❤"], ["❤"]]),
        ("❤", [["❤"], ["❤"]]),
        ("->", [["->"]]),
        ("=>", [["=>"]]),
        ("50%", [["50%"]]),
        ("$5", [["$5"]]),
        ("5€", [["5€"]]),
        ("€", [["€"]]),
        ("::", [["::"]]),
        ("std::vec", [["std::vector"]]),
        ("r&d", [["R&D"]]),
        ("1️⃣", [["1️⃣"]]),
        ("a+b", [["a+b"]]),
        ("naive+", [["naïve+"]]),
        ("\U0001f467", [["\U0001f467"]]),
    ],
)
def test_symbols_are_found_as_they_are(
    history: History, query: str, marks: list[list[str]]
) -> None:
    for text in SYMBOLS:
        history.add_message(history.new_conversation("-").id, "user", text)
    hits = history.search(query)
    assert [[hit.snippet[start:end] for start, end in hit.marks] for hit in hits] == marks
    assert len({hit.message_id for hit in hits}) == len(marks)


def test_punctuation_and_symbols_that_are_not_there(history: History) -> None:
    for text in SYMBOLS:
        history.add_message(history.new_conversation("-").id, "user", text)
    assert [hit.snippet for hit in history.search("mat?")] == ["a cat on a mat"]
    assert [hit.snippet for hit in history.search('"cat" (on)')] == ["a cat on a mat"]
    for query in ("C+++", "cat+", "\U0001f38a", "->>", "\U0001f389 cat"):
        assert history.search(query) == []


def test_symbols_in_titles(history: History) -> None:
    for title in ("All about C++", "All about cats", "\U0001f389 party"):
        history.add_message(history.new_conversation(title).id, "user", "x")
    assert [hit.snippet for hit in history.search("about c++")] == ["All about C++"]
    assert [hit.snippet for hit in history.search("\U0001f389")] == ["\U0001f389 party"]


def test_only_so_many_messages_are_read_for_symbols(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.history.search._MAX_READ", 10)
    monkeypatch.setattr("mmchat.history.search._MAX_READ_SYMBOLS_ONLY", 10)
    conversation = history.new_conversation("-").id
    for text in ("old C++ ∞", *["c"] * 9):
        history.add_message(conversation, "user", text)
    assert len(history.search("C++")) == len(history.search("∞")) == 1
    for _ in range(2):
        history.add_message(conversation, "user", "c")
    assert history.search("C++") == history.search("∞") == []


def test_a_sharp_s_is_two(history: History) -> None:
    texts = ["Die Straße ist lang", "STRASSENFEST", "Strand", "Missverständnis, Mißbrauch"]
    for text in texts:
        history.add_message(history.new_conversation("-").id, "user", text)
    history.add_message(history.new_conversation("Große Straßen").id, "user", "x")
    found = {
        query: {hit.snippet for hit in history.search(query)} for query in ("strasse", "straße")
    }
    assert found["strasse"] == found["straße"] == {texts[0], texts[1], "Große Straßen"}
    assert {hit.snippet for hit in history.search("missbrauch")} == {texts[3]}
    assert {hit.snippet for hit in history.search("grosse strassen")} == {"Große Straßen"}
    assert [hit.snippet[a:b] for hit in history.search("strasse ist") for a, b in hit.marks] == [
        "Straße",
        "ist",
    ]
