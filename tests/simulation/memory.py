"""Shared memory of modelled hosts: it outlives processes, and its slots are used again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omnibus.errors import PayloadLost
from omnibus.payloads.packing import Packed
from omnibus.requests.record import Record
from omnibus.wire.payload import MemorySlot

if TYPE_CHECKING:
    from tests.simulation.loop import Process
    from tests.simulation.world import World


@dataclass(slots=True)
class SimSlot:
    """A slot, and the process that made it."""

    owner: Process
    generation: int = 0
    data: bytes = b""
    rid: str = ""
    """Empty: it is free."""
    run: int = 0
    since: float = 0.0
    expires: float = 0.0

    @property
    def is_orphan(self) -> bool:
        """Whether its process has died, or has left in order."""
        return self.owner.dead or self.owner.finished


@dataclass(slots=True)
class SimHost:
    """A machine's memory."""

    name: str
    slots: dict[str, SimSlot] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    """Those that use it."""

    def left_of(self, records: dict[str, Record]) -> Iterator[tuple[str, str]]:
        """(request, slot) of payloads that only an ended run needed, where a living process could free them."""
        if all(process.dead or process.finished for process in self.processes):
            return
        for name, slot in self.slots.items():
            record = records.get(slot.rid)
            if record is not None and record.state.terminal and slot.run <= record.ticket.run:
                yield slot.rid, name


class SimMemory:
    """Takes the place of `HostMemory` in one process."""

    def __init__(self, world: World, process: Process, host: SimHost) -> None:
        self._world, self._process, self._host = world, process, host
        self.host = host.name
        host.processes.append(process)

    def put(self, packed: Packed, *, rid: str, run: int, expires: float) -> MemorySlot | None:
        if self._world.rng.random() < 0.1:
            return None  # full
        name, slot = self._free_slot()
        slot.generation += 1
        slot.data, slot.rid, slot.run, slot.expires = packed.joined(), rid, run, expires
        slot.since = self._world.loop.time()
        self._world.trace(self._process.name, f"puts a payload of {rid} into {name}")
        return MemorySlot(self.host, name, slot.generation)

    def usage(self) -> tuple[int, int]:
        return 0, 0

    def is_quick(self, _nbytes: int, _slot: MemorySlot | None = None) -> bool:
        return True

    def reaches(self, slot: MemorySlot) -> bool:
        return slot.host == self.host

    def read(self, slot: MemorySlot, nbytes: int, _lead: int = 0, _into: memoryview | None = None) -> memoryview:
        found = self._host.slots.get(slot.name)
        if found is None or not found.rid or found.generation != slot.generation or len(found.data) != nbytes:
            raise PayloadLost(f"{slot.name} has been freed")
        return memoryview(found.data)

    def free(self, rid: str, run: int) -> None:
        for name, slot in list(self._mine()):
            if slot.rid == rid and slot.run <= run:
                self._release(name, slot)

    def sweep(self, now: float, age: float) -> list[str]:
        for name, slot in list(self._mine()):
            if slot.expires <= now or (slot.is_orphan and not slot.rid):
                self._release(name, slot)
        old = self._world.loop.time() - age
        return list({slot.rid: None for _, slot in self._mine() if slot.rid and (slot.is_orphan or slot.since < old)})

    def _mine(self) -> Iterator[tuple[str, SimSlot]]:
        """Slots of this process, and of dead ones of its host."""
        return (
            (name, slot) for name, slot in self._host.slots.items() if slot.owner is self._process or slot.is_orphan
        )

    def _free_slot(self) -> tuple[str, SimSlot]:
        for name, slot in self._host.slots.items():
            if slot.owner is self._process and not slot.rid:
                return name, slot
        name = f"{self._process.name}-{len(self._host.slots)}"
        return name, self._host.slots.setdefault(name, SimSlot(self._process))

    def _release(self, name: str, slot: SimSlot) -> None:
        slot.rid = ""
        if slot.is_orphan:
            del self._host.slots[name]
