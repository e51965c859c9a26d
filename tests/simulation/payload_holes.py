"""Holes to plant in what carries payloads. With any of them a seed must fail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from omnibus.payloads.packing import Packed
from omnibus.payloads.store import PayloadStore
from omnibus.payloads.upkeep import MemoryUpkeep
from omnibus.wire.payload import ObjectKey

if TYPE_CHECKING:
    from tests.simulation.world import World

Patches = Iterable[tuple[Any, str, Any]]


def kv_under_one_name(world: World) -> Patches:
    """The KV of a request is stored under the request's name: that of a later attempt takes its place."""
    # It takes a second attempt that says something else, while a stage that decodes has the result of the first.
    world.is_random, world.crowd, world.faults.strikes = True, 4, 1.5
    world.faults._deaths, world.faults.engine_errors, world.faults.lasts = 0.03, 0.5, 20.0
    real = PayloadStore._put_object

    async def put(self: PayloadStore, packed: Packed, rid: str, **more: Any) -> ObjectKey:
        is_kv = b"token_ids" in packed.joined()
        return await real(self, packed, rid, **(more | {"key": ObjectKey(f"{rid}.kv")} if is_kv else more))

    yield PayloadStore, "_put_object", put


def unswept_memory(_world: World) -> Patches:
    """What is in shared memory is freed when a message says so, and nobody asks."""

    async def sweep(_self: MemoryUpkeep) -> None:
        return

    yield MemoryUpkeep, "_sweep", sweep


PAYLOAD_HOLES = (kv_under_one_name, unswept_memory)
