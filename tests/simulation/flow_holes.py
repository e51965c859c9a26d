"""Holes to plant in the protocol of flows. With any of them a seed must fail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from omnibus.flows.reader import FlowReader
from omnibus.flows.writer import FlowWriter
from omnibus.ledger.performer import Performer
from omnibus.wire import codec
from omnibus.wire.chunk import Chunks, FlowEnd

if TYPE_CHECKING:
    from tests.simulation.world import World

Patches = Iterable[tuple[Any, str, Any]]


def flows_without_expected_sequence(_world: World) -> Patches:
    """A chunk is appended behind whatever there is: two attempts write one flow."""

    async def publish(self: FlowWriter, message: Chunks) -> None:
        self._seq = (await self._conn.js_publish(self.name.subject, codec.encode(message))).seq

    yield FlowWriter, "_publish", publish


def readers_trust_the_bell(_world: World) -> Patches:
    """A reader reads when a bell rings, and at no other time."""

    async def wait(self: FlowReader, _seconds: float) -> None:
        await self._news.wait()

    yield FlowReader, "_wait", wait


def flow_tasks_once(_world: World) -> Patches:
    """The task of a flow's reader is published by the attempt that begins the flow, and by no later one."""
    real = FlowWriter.open

    async def opened(self: FlowWriter, *, keep: bool) -> FlowEnd | None:
        begun, self._on_begun = self._on_begun, _nothing
        try:
            end = await real(self, keep=keep)
        finally:
            if not self.has_begun:
                self._on_begun = begun
        return end

    yield FlowWriter, "open", opened


def flows_end_unacknowledged(_world: World) -> Patches:
    """A worker acknowledges its task when the end of its flow is on its way, and not when it is stored."""

    async def end(self: FlowWriter, end: FlowEnd) -> None:
        if not self.is_complete:
            self._end = end
            self._begin_work()

    yield FlowWriter, "end", end


def flows_begun_twice(_world: World) -> Patches:
    """A later attempt begins the flow again without saying so: its chunks follow those that are there."""
    real = FlowWriter.restart

    def restart(self: FlowWriter) -> None:
        real(self)
        self._restarts = False

    yield FlowWriter, "restart", restart


def forgotten_flows(_world: World) -> Patches:
    """The end of a request leaves its flows to their lifetime."""

    async def purge(_self: Performer, _effect: Any) -> None:
        return

    yield Performer, "_purge_flows", purge


async def _nothing() -> None:
    return


FLOW_HOLES = (
    flows_without_expected_sequence, readers_trust_the_bell, flow_tasks_once, flows_end_unacknowledged, flows_begun_twice,
    forgotten_flows,
)  # fmt: skip
