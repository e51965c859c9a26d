"""The history of a scenario: acts and answers of clients, and faults of the system, in the order in which they happened.

Times are seconds since the epoch, as in the records of the ledger. An operation is one wish of one client, sent as often as it
takes under one key; an attempt is one connection or subscription of it.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    at: float = msgspec.field(default_factory=time.time)


class Invoked(_Event):
    """A client begins an operation."""

    op: str
    front_door: str
    """How it comes in: http-stream, http, raw, python."""
    expects: str | None = None
    """The text that must come out; None: what the ledger says."""
    doomed: bool = False
    """Sent to fail: it must end with a typed error."""


class Accepted(_Event):
    """The client has its acknowledgement."""

    op: str
    rid: str


class Delta(_Event):
    """A piece of streamed text."""

    op: str
    attempt: int
    text: str


class Broken(_Event):
    """An attempt ended without an end of the request; the client tries again."""

    op: str
    attempt: int
    why: str
    begun: bool = False
    """The answer had begun to stream."""


class Ended(_Event):
    """The client was told the end."""

    op: str
    attempt: int
    state: str
    text: str | None = None
    """Text of the answer; None where the client received none."""
    code: str = ""
    """Code of the error, when the request failed."""


class Left(_Event):
    """The client did not wait any longer."""

    op: str
    why: str


class Fault(_Event):
    """Something was done to the system."""

    what: str
    target: str
    held: tuple[tuple[str, int], ...] = ()
    """(request id, stage) of the tasks that whoever died had in hand."""
    until: float | None = None
    """When it was over, where that matters."""


Event = Invoked | Accepted | Delta | Broken | Ended | Left | Fault


class History:
    """The events of one scenario, appended by everybody who takes part in it."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)

    def save(self, file: Path) -> None:
        """Write one JSON object a line; folders are made."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in self.events))
