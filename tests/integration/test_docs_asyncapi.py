"""What goes over a real broker is what the AsyncAPI document says, each message on a subject of its channel."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import msgspec
import pytest

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.pipeline.route import EdgeMode
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec
from omnibus.wire import subjects
from omnibus.wire.request import Request, encode_request
from tests.support.flow import line, serving, sim
from tests.support.waiting import eventually
from tools.site.asyncapi import document
from tools.site.channels import CHANNELS

pytestmark = pytest.mark.integration
DOCUMENT = document()


def _pattern(address: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+\})", address)
    return re.compile("".join("[^.]+?" if part.startswith("{") else re.escape(part) for part in parts))


PATTERNS = {channel.name: _pattern(channel.address) for channel in CHANNELS}


def channel_of(subject: str) -> str:
    """The channel of a subject; fails when the document has none, or several."""
    (name,) = [name for name, pattern in PATTERNS.items() if pattern.fullmatch(subject)]
    return name


def check(message: ReceivedMessage, name: str) -> None:
    """Raises ValidationError for a message that the document does not describe."""
    kinds = DOCUMENT["channels"][name]["messages"]
    described = [DOCUMENT["components"]["messages"][kind]["payload"] for kind in kinds]
    value = _as_json(msgspec.msgpack.decode(message.data, strict=False))
    jsonschema.validate(value, {**DOCUMENT, "anyOf": described}, cls=jsonschema.Draft7Validator)


def _as_json(value: Any) -> Any:
    """MessagePack as the schemas have it: keys are texts, bytes are base64."""
    if isinstance(value, dict):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    return value.hex() if isinstance(value, bytes) else value


async def test_messages_are_those_of_the_document(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(
        name=pipeline, deadline=20.0, heartbeat_timeout=1.0, edges=(EdgeSpec(source=0, target=1, mode=EdgeMode.STREAM),),
        stages=(sim(0, outputs={"text": "text"}), sim(1, 0, final="text"), sim(2, 1, final="text", reject_on={"rid": "^bad"})),
    )  # fmt: skip
    seen: list[tuple[str, ReceivedMessage]] = []
    await connection.subscribe(f"omni.{pipeline}.>", lambda message: seen.append((message.subject, message)))
    async with serving(connection, spec, replicas=2) as producer:
        for rid in ("good", "bad"):
            await connection.js_publish(
                subjects.request(pipeline, rid), encode_request(Request(prompt="one two")),
                headers={"Omni-Reply": "front"},
            )  # fmt: skip
        done = await (await producer.submit(spec, Request(prompt="three four"))).result()
        assert done.state == "done"
        await eventually(lambda: sum("ended" in str(message.data) for _, message in seen) >= 3, 15.0, what="three ends")
        await producer.submit(spec, Request(prompt="five"), rid="cut")
        await producer.cancel(spec.name, "cut")
    names = {channel_of(subject) for subject, _ in seen}
    assert names >= {"request", "task", "event", "timer", "flow", "out", "claim", "controlAll"}
    for subject, message in seen:
        check(message, channel_of(subject))


async def test_record_and_replica_are_those_of_the_document(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    kept: list[tuple[str, ReceivedMessage]] = []
    await connection.subscribe("$KV.>", lambda message: kept.append((message.subject, message)))
    async with serving(connection, spec) as producer:
        assert (await (await producer.submit(spec, Request(prompt="one"))).result()).state == "done"
    written = [(subject, message) for subject, message in kept if message.data and pipeline in subject]
    assert {channel_of(subject) for subject, _ in written} == {"record", "replica"}
    for subject, message in written:
        check(message, channel_of(subject))


def test_message_that_is_not_described_is_noticed(pipeline: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(_Made(msgspec.msgpack.encode({"type": "tokens", "rid": 1})), "out")  # type: ignore[arg-type]


class _Made(msgspec.Struct):
    data: bytes
