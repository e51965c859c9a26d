"""A message of a work queue in the hands of a receiver."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnibus.broker.connection import Connection, ReceivedMessage

_TOKENS = 9  # $JS ACK stream consumer delivered stream-sequence consumer-sequence time pending
_DOMAIN_TOKENS = 2  # newer servers insert domain and account before the stream
_ACK = re.compile(r"\$JS\.ACK(\.[^.]+){0,2}(\.[^.]+){2}(\.\d+){5}(\.[^.]+)?")
_NO_HEADERS: Mapping[str, str] = {}
_MSG_ID = "Nats-Msg-Id"
ATTEMPTS_HEADER = "Omni-Attempts"
"""Header of a message that was published again: attempts that its former copies have used up."""
_MOST_DIGITS, _MOST_SEQUENCE_DIGITS = 10, 20


class Delivery:
    """One delivery of one message, with what can be answered to it.

    Answers are core messages: a lost one means that the message is delivered again after the ack wait. They carry no
    fence: a worker that missed its lease must not answer any more.
    """

    __slots__ = (
        "_connection", "ack_subject", "consumer", "consumer_seq", "data", "headers", "num_delivered", "pending",
        "stored_at", "stream_seq", "subject",
    )  # fmt: skip

    def __init__(self, connection: Connection, message: ReceivedMessage) -> None:
        self._connection = connection
        self.subject = message.subject
        self.data = message.data
        self.headers = message.headers if message.headers is not None else _NO_HEADERS
        self.ack_subject = message.reply
        """Where answers go; a claim names it, so that others can give the message back."""
        tokens = _after_stream(message.reply.split("."))
        self.consumer = tokens[0]
        self.num_delivered = int(tokens[1])
        """1 for the first delivery."""
        self.stream_seq = int(tokens[2])
        self.consumer_seq = int(tokens[3])
        """Counts the deliveries of the consumer."""
        self.stored_at = int(tokens[4]) / 1e9
        """When the message was stored, in Unix seconds by the server's clock."""
        self.pending = int(tokens[5])
        """Messages that waited behind this one when it was delivered."""

    @property
    def again(self) -> bool:
        """Whether somebody may have had it before: it was delivered earlier, or is a copy of a message that was."""
        return self.num_delivered > 1 or "/" in self.headers.get(_MSG_ID, "")

    @property
    def former(self) -> int | None:
        """Sequence of the message that somebody may have had before: its own, or that which it is a copy of; None: nobody."""
        if self.num_delivered > 1:
            return self.stream_seq
        _, slash, sequence = self.headers.get(_MSG_ID, "").rpartition("/")
        return int(sequence) if slash and sequence.isdecimal() and len(sequence) <= _MOST_SEQUENCE_DIGITS else None

    @property
    def attempts(self) -> int:
        """Which attempt at its work this delivery is: those of the messages that it is a copy of count."""
        return self.num_delivered + _used(self.headers)

    async def ack(self) -> None:
        """It is done; the message leaves the queue."""
        self._connection.send(self.ack_subject, b"+ACK")

    def renew(self) -> None:
        """Count the ack wait anew: its receiver still works at it. A lost renewal has it delivered to somebody else."""
        self._connection.send(self.ack_subject, b"+WPI")

    async def nak(self, delay: float | None = None) -> None:
        """Deliver it again, to anybody, `delay` seconds from now; counts as an attempt."""
        suffix = b' {"delay": %d}' % int(delay * 1e9) if delay else b""
        self._connection.send(self.ack_subject, b"-NAK" + suffix)

    async def requeue(self, subject: str | None = None) -> None:
        """Publish the message again, then ack it: that counts as no attempt, and earlier attempts count on.

        On another `subject` when one is given. Idempotent through its Msg-Id. The server has both when this returns: without
        the ack, the message would come again beside its copy. Raises BrokerUnavailable.
        """
        msg_id, headers = published_again(self.subject, self.stream_seq, self.headers, used=self.num_delivered - 1)
        await self._connection.js_publish(subject or self.subject, self.data, msg_id, headers=headers)
        await self._connection.retried(self._ack_surely)

    async def _ack_surely(self) -> None:
        await self.ack()
        await self._connection.flush()


def published_again(
    subject: str, stream_seq: int, headers: Mapping[str, str], *, used: int
) -> tuple[str, dict[str, str]]:
    """Msg-Id and headers of another copy of a stored message; that of the original would be taken for a duplicate.

    The Msg-Id is the same for everybody: of several who publish it again, one alone counts. `used` are the attempts that
    this message has used up.
    """
    original = headers.get(_MSG_ID, subject).partition("/")[0]
    kept = {key: value for key, value in headers.items() if not key.startswith("Nats-")}
    used += _used(headers)
    return f"{original}/{stream_seq}", {**kept, **({ATTEMPTS_HEADER: str(used)} if used else {})}


def _used(headers: Mapping[str, str]) -> int:
    counted = headers.get(ATTEMPTS_HEADER, "")
    # Producers of raw requests may write anything there.
    return int(counted) if len(counted) < _MOST_DIGITS and counted.isdecimal() else 0


def consumer_of(ack_subject: str) -> str:
    """The consumer that delivered what an ack subject answers."""
    return _after_stream(ack_subject.split("."))[0]


def is_ack_subject(subject: str) -> bool:
    """Check that a subject answers a delivery: a client that may announce claims can put anything into one."""
    return _ACK.fullmatch(subject) is not None


def claimed(ack_subject: str) -> tuple[int, int]:
    """Stream sequence and delivery count of what an ack subject answers."""
    tokens = _after_stream(ack_subject.split("."))
    return int(tokens[2]), int(tokens[1])


def _after_stream(tokens: list[str]) -> list[str]:
    """Consumer, deliveries, stream sequence, consumer sequence, time, pending."""
    start = 2 if len(tokens) == _TOKENS else 2 + _DOMAIN_TOKENS
    return tokens[start + 1 :]


async def release(connection: Connection, ack_subject: str) -> None:
    """Give a dead receiver's message back to the queue at once; the failover's NAK, once a claim."""
    connection.send(ack_subject, b"-NAK")
