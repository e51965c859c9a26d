"""What `omnibus bench` reads of a stream, and the figures that it makes of it."""

from __future__ import annotations

import json

import pytest

from omnibus.cli.chat_load import ChatReader, spread

pytestmark = pytest.mark.unit


def event(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


def test_first_token_and_first_sound_are_those_with_something_in_them() -> None:
    reader = ChatReader()
    reader.feed(event(role="assistant", content=""))
    assert (reader.first_token, reader.first_audio) == (None, None)
    reader.feed(event(content="a"))
    token = reader.first_token
    assert token is not None
    reader.feed(event(content="b") + event(audio={"id": "x", "data": ""}))
    assert (reader.first_token, reader.first_audio) == (token, None)
    reader.feed(event(audio={"data": "AAAA"}))
    assert reader.first_audio is not None
    assert reader.first_audio >= token


def test_events_are_read_when_their_bytes_come_in_pieces() -> None:
    reader, whole = (
        ChatReader(),
        event(content="a") + b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n',
    )
    for index in range(len(whole)):
        reader.feed(whole[index : index + 1])
    assert (reader.tokens, reader.is_whole, reader.error) == (7, True, None)
    assert reader.first_token is not None


def test_error_in_a_stream_is_its_failure() -> None:
    reader = ChatReader()
    reader.feed(b'data: {"error":{"message":"no room","code":"overloaded"}}\n\n')
    assert (reader.error, reader.is_whole) == ("no room", False)


def test_spread_has_the_usual_quantiles_and_none_of_nothing() -> None:
    assert spread([]) is None
    assert spread([0.5]) == {"p50": 0.5, "p90": 0.5, "p99": 0.5, "max": 0.5}
    assert spread([float(one) for one in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
