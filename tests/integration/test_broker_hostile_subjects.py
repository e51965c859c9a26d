"""Subjects that only a client that is not ours can send: those of a server's protocol, and of nobody's alphabet."""

from __future__ import annotations

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.replies import ReceivedMessage

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("token", [b"\xff\xfe", b"a\x0b1", b"a\x0c1\x0c1", b"a\x1c\x1d1", b"\xc2\xa0"])
async def test_reader_goes_on_and_confuses_nothing_when_a_subject_is_no_text_of_ours(
    connection: Connection, token: bytes
) -> None:
    received: list[ReceivedMessage] = []
    others: list[ReceivedMessage] = []
    await connection.subscribe("others.>", others.append)
    await connection.subscribe("hostile.*", received.append)
    generation = connection.generation
    connection.client._send(b"PUB hostile.%b reply.to 1\r\nx\r\n" % token)
    await connection.publish("hostile.last", b"y")
    await connection.flush()
    assert [message.data for message in received] == [b"x", b"y"]
    assert received[0].reply == "reply.to"
    assert not others
    assert connection.generation == generation, "the connection was kept"
