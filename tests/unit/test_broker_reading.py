"""The reader of NATS' protocol: every message reaches its listener whole and in order, however the stream is cut."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError

from omnibus.broker.message_reader import MessageReader, NatsMessage

pytestmark = pytest.mark.unit

_HEAD = b"NATS/1.0\r\nNats-Msg-Id: a:b\r\nEmpty:\r\n\r\n"
_STATUS = b"NATS/1.0 404 No Messages\r\nNats-Pending-Messages: 3\r\n\r\n"
_STREAM = b"".join((
    b"PING\r\n",
    b"MSG one.a 1 5\r\nhe\r\no\r\n",
    b"MSG one.b 1 reply.to 0\r\n\r\n",
    b"+OK\r\n",
    b"HMSG two 2 $JS.ACK.x %d %d\r\n%bbody\r\n" % (len(_HEAD), len(_HEAD) + 4, _HEAD),
    b"HMSG two 2 %d %d\r\n%b\r\n" % (len(_STATUS), len(_STATUS), _STATUS),
    b"MSG nobody.listens 9 2\r\nxx\r\n",
    b"-ERR 'Permissions Violation'\r\n",
    b"MSG one.c 1 3\r\nMSG\r\n",
))  # fmt: skip
_MESSAGES = [
    ("one.a", "", b"he\r\no", None),
    ("one.b", "reply.to", b"", None),
    ("two", "$JS.ACK.x", b"body", {"Nats-Msg-Id": "a:b", "Empty": ""}),
    ("two", "", b"", {"Status": "404", "Description": "No Messages", "Nats-Pending-Messages": "3"}),
    ("one.c", "", b"MSG", None),
]
_CONTROL = b"PING\r\n+OK\r\n-ERR 'Permissions Violation'\r\n"


def _read(pieces: list[bytes]) -> tuple[list[object], bytes]:
    """The messages that listeners got, and the control lines that are left for nats-py."""

    async def read() -> tuple[list[object], bytes]:
        messages: list[object] = []

        def listen(message: NatsMessage) -> None:
            messages.append((message.subject, message.reply, message.data, message.headers))

        reader = MessageReader({b"1": listen, b"2": listen}, 1 << 16)
        for piece in pieces:
            reader.feed_data(piece)
        reader.feed_eof()
        return messages, await reader.read()

    return asyncio.run(read())


@given(st.lists(st.integers(0, len(_STREAM)), max_size=12))
def test_messages_arrive_whole_and_in_order_when_the_stream_is_cut_anywhere(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(_STREAM)]
    pieces = [_STREAM[start:end] for start, end in itertools.pairwise(ends) if end > start]
    assert _read(pieces) == (_MESSAGES, _CONTROL)


def test_messages_arrive_when_every_byte_comes_alone() -> None:
    assert _read([_STREAM[at : at + 1] for at in range(len(_STREAM))]) == (_MESSAGES, _CONTROL)


@pytest.mark.parametrize("line", [b"MSG one\r\n", b"MSG one 1 many\r\n", b"HMSG one 1 x 2\r\n\r\n\r\n"])
def test_client_is_told_when_the_stream_is_not_what_a_server_sends(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        _read([line])
