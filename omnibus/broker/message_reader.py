"""The reader of NATS' protocol: a message reaches the listener of its subscription in the turn in which it is complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from nats.errors import ProtocolError

_STATUS = 9
"""Position of a status in the first line of a header: `NATS/1.0 404 No Messages`."""

Listener = Callable[["NatsMessage"], None]


class NatsMessage:
    """A message that was received."""

    __slots__ = ("_head", "_headers", "data", "reply", "subject")

    def __init__(self, subject: bytes, reply: bytes, head: bytes | None, data: bytes) -> None:
        # Servers take any bytes for a subject: those that are no text stand for nothing of ours.
        self.subject, self.reply, self.data = subject.decode(errors="replace"), reply.decode(errors="replace"), data
        self._head = head
        self._headers: Mapping[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str] | None:
        """Headers, with a status as `Status` and `Description`; None without any."""
        if self._headers is None and self._head is not None:
            self._headers = _parsed(self._head)
        return self._headers


class MessageReader(asyncio.StreamReader):
    """A stream that keeps its control lines for nats-py, and hands each message to the listener of its subscription."""

    def __init__(self, listeners: Mapping[bytes, Listener], limit: int) -> None:
        super().__init__(limit)
        self._listeners = listeners
        self.lines = 0
        """How many control lines have come."""
        self._held: list[bytes] = []
        """The beginning of what is not complete yet, in pieces."""
        self._missing = 0
        """Bytes, at least, until it is."""

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # protocols feed bytes
        """Called by the protocol with what has arrived."""
        if self._held:
            self._held.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._held)
            self._held.clear()
        try:
            end = self._hand_out(data)
        except (ValueError, IndexError):
            self.set_exception(ProtocolError())  # upon which the client reconnects
            return
        if end < len(data):
            self._held.append(data[end:])

    def _hand_out(self, data: bytes) -> int:
        """Take whole messages and control lines; returns where the first one begins that is not complete."""
        at, size, find = 0, len(data), data.find
        while at < size:
            stop = find(b"\r\n", at)
            if stop < 0:
                self._missing = 1
                return at
            first = data[at]
            if first != ord("M") and first != ord("H"):
                super().feed_data(data[at : stop + 2])
                self.lines += 1
                at = stop + 2
                continue
            # MSG subject sid [reply] size, HMSG subject sid [reply] size-of-head size. Invariant: parted by spaces alone. A
            # subject may hold other white space, and what follows it would pass for the subscription's id.
            words = data[at:stop].split(b" ")
            start, end = stop + 2, stop + 2 + int(words[-1])
            if end + 2 > size:
                self._missing = end + 2 - size
                return at
            body = start if first == ord("M") else start + int(words[-2])
            at = end + 2
            listener = self._listeners.get(words[2])
            if listener is not None:
                reply = words[3] if len(words) > (4 if first == ord("M") else 5) else b""
                head = data[start:body] if body > start else None
                listener(NatsMessage(words[1], reply, head, data[body:end]))
        return size


def _parsed(head: bytes) -> Mapping[str, str] | None:
    first, *lines = head.decode("utf-8", "replace").split("\r\n")
    status, _, description = first[_STATUS:].partition(" ")
    found = {"Status": status} if status.isdigit() else {}
    if description:
        found["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    return found or None
