"""Pulling, as `omnibus.broker.puller.Puller` does it: credit a free slot, several lanes, excess requeued."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from omnibus.broker.delivery import Delivery
from omnibus.errors import BrokerError
from tests.simulation.broker import Wire
from tests.simulation.connection import SimConnection
from tests.simulation.streams import Stored


class SimPuller:
    """Takes the place of the real one, whose parked pulls and idle heartbeats have tests on a real server."""

    def __init__(
        self, connection: SimConnection, stream: str, consumers: Sequence[str], *,
        favoured: Sequence[str] = (),  # noqa: ARG002 the order of lanes is left to chance
        step: int = 1,  # noqa: ARG002
        excess: Callable[[Delivery], Awaitable[None]] = Delivery.requeue,
        lease: float = 0.0,  # noqa: ARG002 pulls do not outlive their client here
        label: str = "",  # noqa: ARG002
    ) -> None:  # fmt: skip
        self._connection = connection
        self._keys = [(stream, name) for name in consumers]
        self._coming = dict.fromkeys(consumers, 0)
        self._excess = excess
        self._epoch = connection.epoch
        self._ready: asyncio.Queue[Delivery] = asyncio.Queue()
        self.deliver: Callable[[Delivery], None] = self._ready.put_nowait
        self.credit = 0

    async def __aenter__(self) -> Self:
        self._unhook = self._connection.on_reconnect(self._ask)
        for key in self._keys:
            self._connection.world.broker.pullers[key].append(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.withdraw()
        self._unhook()
        for key in self._keys:
            self._connection.world.broker.pullers[key].remove(self)
        while not self._ready.empty():
            self._requeue(self._ready.get_nowait())

    def add_credit(self, slots: int = 1) -> None:
        self.credit += slots
        self._connection.world.broker.at(self._connection.world.loop.time(), self._ask)

    def withdraw(self) -> int:
        withdrawn, self.credit = self.credit, 0
        return withdrawn

    async def take(self) -> Delivery:
        return await self._ready.get()

    async def until_failed(self) -> None:
        await asyncio.get_running_loop().create_future()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        return await self.take()

    # The broker's side

    def wants(self, consumer: str) -> bool:
        """Whether a pull of this one waits at the broker, which finds a dead client out at once."""
        connection = self._connection
        if connection.process.dead or not connection.connected:
            return False
        if self._epoch != connection.epoch:  # pulls are asked for anew after a reconnect
            self._epoch = connection.epoch
            self._coming = dict.fromkeys(self._coming, 0)
        return self._coming[consumer] < self.credit

    def send(self, consumer: str, stored: Stored, reply: str) -> None:
        self._coming[consumer] += 1
        message = Wire(stored.subject, stored.data, stored.headers, reply)
        self._connection.arrive(lambda: self._receive(consumer, message))

    def _ask(self) -> None:
        for key in self._keys:
            if (consumer := self._connection.world.broker.consumers.get(key)) is not None:
                consumer.offer()

    def _receive(self, consumer: str, message: Wire) -> None:
        if self._epoch == self._connection.epoch:
            self._coming[consumer] -= 1
        delivery = Delivery(self._connection, message)
        world = self._connection.world
        world.trace(self._connection.name, f"takes {message.subject} #{delivery.stream_seq}, {delivery.num_delivered}")
        if self.credit > 0:
            self.credit -= 1
            self.deliver(delivery)
        else:
            self._requeue(delivery)

    def _requeue(self, delivery: Delivery) -> None:
        self._connection.process.spawn(self._return_excess(delivery), "hand-back")

    async def _return_excess(self, delivery: Delivery) -> None:
        try:
            await self._excess(delivery)
        except BrokerError:
            return  # delivered again when its lease ends
