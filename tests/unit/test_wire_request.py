"""A producer's message: what is null asks for nothing, what is unknown is refused unless it does, and errors name the field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from omnibus.errors import InvalidRequest
from omnibus.requests.record import unknown
from omnibus.wire.request import (
    FunctionCall,
    ImagePart,
    Message,
    Request,
    TextPart,
    ToolCall,
    decode_request,
    encode_request,
)

pytestmark = pytest.mark.unit
WRITERS = (msgspec.json.encode, msgspec.msgpack.encode)
HALF = "\ud83d"


def user(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "nothing",
    [
        {"stream": None, "sampling_params": None, "deadline": None, "lane": None},
        {"newfangled": None},
        {"newfangled": False},
        {"newfangled": ""},
        {"newfangled": []},
        {"newfangled": {}},
    ],
)
def test_nulls_and_unknown_fields_that_ask_for_nothing_are_left_out(write: Any, nothing: dict[str, Any]) -> None:
    assert decode_request(write({"prompt": "hi", **nothing})) == Request(prompt="hi")
    turn = {name: value for name, value in nothing.items() if name == "newfangled"}
    assert decode_request(write(user(**turn, tool_calls=None))) == Request(
        messages=(Message(role="user", content="hi"),)
    )


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "hi", "temperature": 0.5}, "temperature"),
        ({"prompt": "hi", "newfangled": 0}, "newfangled"),
        (user(mood="glad"), "messages[0].mood"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "bold": True}]}]},
         "messages[0].content[0].bold"),
        (user(tool_calls=[{"id": "c", "function": {"name": "f"}}]), "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "hi", "v": 2}, "v"),
        ({"prompt": "hi", "lane": "fast"}, "lane"),
        ({"prompt": "hi", "sampling_params": {"say": 5}}, "sampling_params"),
    ],
)  # fmt: skip
def test_invalid_with_the_field_when_it_is_unknown_or_wrong(write: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_request(write(fields))
    assert refused.value.param == param


@pytest.mark.parametrize("write", WRITERS)
def test_calls_of_earlier_turns_are_read(write: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c"}]
    assert decode_request(write({"messages": turns})).messages == (
        Message(role="assistant", tool_calls=(ToolCall(id="c", function=FunctionCall(name="f", arguments="{}")),)),
        Message(role="tool", tool_call_id="c"),
    )


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request(prompt=HALF), "prompt"),
        (Request(messages=(Message(role="user", content=(TextPart(text="a"), TextPart(text=HALF))),)),
         "messages[0].content[1].text"),
        (Request(messages=(Message(role=HALF, content="a"),)), "messages[0].role"),
        (Request(messages=(Message(role="user", content=(ImagePart(data=b"", media_type=HALF),)),)),
         "messages[0].content[0].media_type"),
        (Request(prompt="a", cache_salt=HALF), "cache_salt"),
        (Request(prompt="a", tenant=HALF), "tenant"),
        (Request(prompt="a", sampling_params={"say": {"stop": ["a", HALF]}}), "sampling_params.say.stop[1]"),
        (Request(prompt="a", sampling_params={"say": {HALF: 1}}), "sampling_params.say"),
        (Request(prompt="a", sampling_params={HALF: {}}), "sampling_params"),
        (Request(prompt="a", sampling_params={"say": {"seed": 1 << 70}}), "sampling_params.say.seed"),
        (Request(prompt="a", mm_processor_kwargs={"a": {"b": object()}}), "mm_processor_kwargs.a.b"),
    ],
)  # fmt: skip
def test_invalid_with_the_place_when_a_value_cannot_be_written(request_: Request, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        encode_request(request_)
    assert refused.value.param == param


@pytest.mark.parametrize("text", ["a" + HALF, HALF, "\udc00b"])
def test_errors_can_be_written_whatever_they_quote(text: str) -> None:
    error = InvalidRequest(f"no stage {text!r} or {text}", param=f"sampling_params.{text}")
    assert (error.message + (error.param or "")).encode().isascii()


def test_unknown_request_names_the_bare_id_when_the_id_is_that_of_an_answer() -> None:
    assert unknown("chatcmpl-ab12").message.endswith("without chatcmpl- it is a request's id: ab12")
    assert "without" not in unknown("my-id").message
