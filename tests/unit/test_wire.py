"""Messages on the broker: envelopes, untyped values, requests, failures."""

from __future__ import annotations

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnibus import errors
from omnibus.errors import InvalidRequest, OmnibusError
from omnibus.pipeline.route import Forwarding, Route, RouteStage, Target
from omnibus.wire import codec
from omnibus.wire.envelope import VERSION, Event, StageResult, Task, Ticket
from omnibus.wire.failure import Failure
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import AudioPart, ImagePart, Message, Request, TextPart, decode_request, encode_request

pytestmark = pytest.mark.unit

ROUTE = Route((RouteStage(0, (), (Target(1, Forwarding.DIRECT),), None), RouteStage(1, (0,), (), "text")))
TICKET = Ticket(rid="r", pipeline="p", route=ROUTE, created=1.0, deadline=2.0, request=Payload.inline(b"x", TEXT))


def test_version_is_on_the_wire_so_that_it_is_the_senders() -> None:
    """Left out where it is the receiver's default, an older receiver would take a later message for its own."""
    assert msgpack.unpackb(codec.encode(Task(ticket=TICKET, stage_id=1, published=1.0)))["v"] == VERSION


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", ">f4"])
def test_array_keeps_dtype_and_shape_when_packed(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = codec.unpack(codec.pack({"deep": [array]}))["deep"][0]
    assert found.shape == (2, 3, 4)
    assert found.dtype == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_empty_and_scalar_arrays_survive(shape: tuple[int, ...]) -> None:
    assert codec.unpack(codec.pack(np.zeros(shape, np.float32))).shape == shape


def test_non_contiguous_array_is_packed_in_c_order() -> None:
    array = np.arange(6).reshape(2, 3).T
    np.testing.assert_array_equal(codec.unpack(codec.pack(array)), array)


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()])])
def test_value_that_cannot_travel_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot send"):
        codec.pack(value)


@given(st.binary(max_size=64))
def test_junk_is_a_typed_error(junk: bytes) -> None:
    for kind in (Task, Event, Request):
        try:
            codec.decode(junk, kind)
        except InvalidRequest:
            continue


def test_msgpack_library_reads_an_envelope() -> None:
    task = Task(ticket=TICKET, stage_id=1, published=1.5, inputs={0: {"text": Payload.inline(b"hi", TEXT)}})
    found = msgpack.unpackb(codec.encode(task), strict_map_key=False)
    assert found["type"] == "task"
    assert found["ticket"]["rid"] == "r"
    assert found["inputs"][0]["text"]["data"] == b"hi"
    assert codec.decode(codec.encode(task), Task) == task


def test_event_is_decoded_by_its_tag() -> None:
    result = StageResult(ticket=TICKET, stage_id=0, replica="r0")
    assert codec.decode(codec.encode(result), Event) == result


def test_request_is_read_from_json_and_messagepack_alike() -> None:
    request = Request(prompt="hi", modalities=("text",), sampling_params={"a": {"seed": 1}})
    assert decode_request(encode_request(request)) == request
    assert decode_request(msgspec.json.encode(request)) == request
    assert decode_request(b'  {"prompt": "hi"}') == Request(prompt="hi")


@pytest.mark.parametrize("data", [b"", b"a red circle", b'"a red circle"', b"[1]", b"\x93abc", b"\xc0"])
def test_request_is_refused_in_plain_words_when_it_is_no_map(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="neither a JSON object nor a MessagePack map"):
        decode_request(data)


def test_request_carries_media() -> None:
    parts = (TextPart(text="what is this"), ImagePart(data=b"\x89PNG"), AudioPart(data=b"RIFF"))
    request = Request(messages=(Message(role="user", content=parts),))
    assert decode_request(encode_request(request)) == request
    assert decode_request(msgspec.json.encode(request)) == request
    assert request.text() == "what is this"


@pytest.mark.parametrize("kind", [found for found in vars(errors).values() if isinstance(found, type)])
def test_every_error_survives_the_wire(kind: type) -> None:
    if not issubclass(kind, OmnibusError):
        return
    error = kind("what happened")
    back = Failure.of(error, stage_id=3, replica="r1").exception()
    assert (type(back), str(back)) == (kind, str(error))


def test_codes_are_unique() -> None:
    kinds = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, OmnibusError)]
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_foreign_exception_becomes_an_engine_error() -> None:
    failure = Failure.of(ValueError("no"))
    assert (failure.code, failure.message, failure.http_status) == ("engine_error", "ValueError: no", 500)
