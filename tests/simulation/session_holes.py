"""Holes to plant in open inputs. With any of them a seed must fail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omnibus.broker.connection import Connection
from omnibus.flows import segments
from omnibus.flows.flow_name import FlowName
from omnibus.flows.reader import FlowReader
from omnibus.ledger.performer import Performer
from omnibus.wire import codec
from omnibus.wire.chunk import Chunks
from omnibus.wire.subjects import INPUT
from omnibus.workers.open_input import OpenInput

if TYPE_CHECKING:
    from tests.simulation.world import World

Patches = Iterable[tuple[Any, str, Any]]


def segments_by_number_alone(_world: World) -> Patches:
    """A segment whose number is stored counts as accepted, whatever it says."""
    yield segments, "_digested", lambda _encoded: b""


def segments_without_expected_sequence(_world: World) -> Patches:
    """A segment is appended behind whatever there is: two senders append the same number."""

    async def publish(conn: Connection, name: FlowName, message: Chunks, _seq: int) -> int:
        return (await conn.js_publish(name.subject, codec.encode(message))).seq

    yield segments, "publish_behind", publish


def later_attempts_listen_on(_world: World) -> Patches:
    """A later attempt begins behind the first segment, which an earlier one has read."""
    real, begun = OpenInput.__init__, set[FlowName]()

    def init(self: OpenInput, reader: FlowReader, *given: Any) -> None:
        real(self, reader, *given)
        if reader.name in begun:
            self._chunks.clear()
        begun.add(reader.name)

    yield OpenInput, "__init__", init


def forgotten_inputs(_world: World) -> Patches:
    """The end of a request removes the flows of its runs, and leaves its input to its lifetime."""
    real = Performer._purge_flows

    async def purge(self: Performer, effect: Any) -> None:
        await real(self, replace(effect, resumable=False))

    yield Performer, "_purge_flows", purge


def inputs_read_silently(_world: World) -> Patches:
    """Who reads an open input tells nobody how far: whoever sends waits in vain."""
    real = FlowReader._report

    def report(self: FlowReader) -> None:
        if self.name.stage_id != INPUT:
            real(self)

    yield FlowReader, "_report", report


SESSION_HOLES = (
    segments_by_number_alone, segments_without_expected_sequence, later_attempts_listen_on, forgotten_inputs,
    inputs_read_silently,
)  # fmt: skip
