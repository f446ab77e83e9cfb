"""Pictures at their place in the text, and server-sent events as servers really send them."""

import json
import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.client import Options, wire
from mmchat.client.wire import message, read_error, request_options, split_lines, sse_data
from mmchat.errors import EngineError
from mmchat.turns import ImagePart, Turn, place_pictures

A, B, C = (ImagePart(letter * 64) for letter in "abc")


def test_marks_are_replaced_by_their_pictures() -> None:
    assert place_pictures("is [2] left of [1]?", [A, B]) == ("is ", B, " left of ", A, "?")
    assert place_pictures("what is this?", [A, B]) == (A, B, "what is this?")
    assert place_pictures("[1] and [1]", [A]) == (A, " and [1]")
    assert place_pictures("see [7] and [0] and [01]", [A]) == (A, "see [7] and [0] and [01]")
    assert place_pictures("only [2]", [A, B, C]) == (A, C, "only ", B)
    assert place_pictures("", [A]) == (A,)
    assert place_pictures("[1]", []) == ("[1]",)
    assert place_pictures("", []) == ()
    assert place_pictures("[" + "9" * 5000 + "]", [A])[0] == A


@given(st.text(alphabet="[]0123 ab\n", max_size=40), st.integers(0, 4))
def test_no_text_and_no_picture_is_lost(text: str, count: int) -> None:
    pictures = [ImagePart(str(number)) for number in range(1, count + 1)]
    parts = place_pictures(text, pictures)
    placed = [part for part in parts if isinstance(part, ImagePart)]
    assert sorted(part.sha256 for part in placed) == [part.sha256 for part in pictures]
    unmarked = sum(1 for n in range(1, count + 1) if f"[{n}]" not in text)
    assert all(isinstance(part, ImagePart) for part in parts[:unmarked])
    back = "".join(p if isinstance(p, str) else f"[{p.sha256}]" for p in parts[unmarked:])
    assert back == text
    assert not any(part == "" for part in parts)
    assert re.sub(r"\s", "", text) == "" or parts


async def lines_of(*pieces: bytes) -> list[str]:
    async def source() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [data async for data in sse_data(split_lines(source()))]


async def test_server_sent_events_of_all_tempers() -> None:
    assert await lines_of(b'data: {"a":1}\n\ndata:{"b":2}\n\ndata: [DONE]\n\n') == [
        '{"a":1}',
        '{"b":2}',
    ]
    assert await lines_of(b": comment\r\n\r\nevent: x\r\nid: 1\r\ndata: one\r\n\r\n") == ["one"]
    assert await lines_of(b"data: one\ndata: two\n\n") == ["one\ntwo"]
    assert await lines_of(b"data: no end") == ["no end"]
    assert await lines_of(b"data: one\n\ndata: [DONE]") == ["one"]
    assert await lines_of(b"data: [DONE]\n\ndata: after\n\n") == []
    assert await lines_of("data: \u2028 is text\n\n".encode()) == ["\u2028 is text"]


async def test_what_has_no_end_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_LINE", 1000)
    with pytest.raises(EngineError, match="line that does not end"):
        await lines_of(b"x" * 600, b"x" * 600)
    with pytest.raises(EngineError, match="event that does not end"):
        await lines_of(*[b"data: x\n"] * 200)
    assert len(await lines_of(*[b"data: x\n\n"] * 200)) == 200


@given(st.text(min_size=1).filter(lambda text: not set(text) & set("\r\n")), st.data())
async def test_pieces_may_end_within_a_character(text: str, data: st.DataObject) -> None:
    whole = f"data: {text}\n\n".encode()
    cut = data.draw(st.integers(0, len(whole)))
    expected = [] if text.strip() == "[DONE]" else [text]
    assert await lines_of(whole[:cut], whole[cut:]) == expected


def test_stock_servers_get_stock_messages_and_only_what_was_chosen() -> None:
    turn = Turn("user", (ImagePart("0" * 64, "image/jpeg", b"hi"), "what?"))
    turns = [Turn("system", ("Be ", "brief.")), turn]
    assert [message(one, by_reference=False) for one in turns] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,aGk="}},
                {"type": "text", "text": "what?"},
            ],
        },
    ]
    assert request_options(Options(), include_defaults=False) == {
        "temperature": 0.0,
        "max_tokens": 512,
    }
    assert request_options(Options(top_k=4, stop=("x",)), include_defaults=False) == {
        "temperature": 0.0,
        "max_tokens": 512,
        "top_k": 4,
        "stop": ["x"],
    }


def test_a_request_is_utf_8_whatever_was_typed() -> None:
    """A shell hands on bytes that are no UTF-8 as lone surrogates."""
    body = {"model": "é", "messages": [message(Turn("system", ("a\udcff😀",)), by_reference=True)]}
    assert json.loads(wire.encode_json(body)) == {
        "model": "é",
        "messages": [{"role": "system", "content": "a\ufffd😀"}],
    }


def test_errors_of_several_servers_are_read() -> None:
    for body in (b'{"error":{"message":"no"}}', b'{"error":"no"}', b'{"detail":"no"}', b" no\n"):
        assert read_error(body).message == "no"
    assert read_error(b"[]").message == ""
    assert read_error(b'{"error":{"x_mmchat":{"missing":["a"]}}}').missing == ["a"]
