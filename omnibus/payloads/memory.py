"""Shared memory of a host, as one process has it: its own pool, slots of others that it reads, and those that the dead left."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.payloads.host import SHARED_MEMORY, host_id, is_alive
from omnibus.payloads.packing import Packed
from omnibus.payloads.pool import Pool
from omnibus.payloads.slot import Contents, Reading, contents_of, owner_of
from omnibus.payloads.targets import Targets
from omnibus.wire.payload import MemorySlot

log = get_logger(__name__)

_QUICK = 5 << 18
"""Bytes that are copied in a tenth of a millisecond: 1 MiB, and what is around it."""
_MOST_UNUSED = 256 << 20
"""Bytes of buffers that are kept for the next payloads, when nothing views them any more."""
_MOST_MAPPED = 64
"""Slots of others that stay mapped between two reads, as mapping one costs more than its copy."""


class HostMemory:
    """Shared memory for the payloads of one pipeline. What copies is for threads; the rest takes microseconds."""

    def __init__(self, pipeline: str, limit: int, folder: Path = SHARED_MEMORY) -> None:
        """`limit` is a bound on the bytes of this process's own pool."""
        self._pipeline, self._folder = pipeline, folder
        self.host = host_id(folder)
        self._pool, self._targets = Pool(pipeline, limit, folder), Targets(min(limit, _MOST_UNUSED))
        self._lock = threading.Lock()
        self._mapped: OrderedDict[str, Reading] = OrderedDict()
        self._left: dict[str, Contents] = {}
        """Slots of dead processes, by name."""

    def put(self, packed: Packed, *, rid: str, run: int, expires: float) -> MemorySlot | None:
        """Copy a payload in; None when there is no room. It is readable on this host, until `expires` at the latest."""
        put = self._pool.put(packed, rid=rid, run=run, expires=expires)
        return None if put is None else MemorySlot(self.host, *put)

    def usage(self) -> tuple[int, int]:
        """Bytes of this process's slots that hold payloads, and of those that are free."""
        return self._pool.usage()

    def reaches(self, slot: MemorySlot) -> bool:
        """Whether this process could read a slot: it is of this host, and no other user's."""
        try:
            is_ours = (self._folder / slot.name).stat().st_uid == os.geteuid()
        except OSError:  # it is gone: no process of this host has it
            is_ours = True
        return slot.host == self.host and is_ours

    def is_quick(self, nbytes: int, slot: MemorySlot | None = None) -> bool:
        """Whether so many bytes are read from `slot`, or put, in less time than a thread would cost."""
        if nbytes > _QUICK:
            return False
        return slot.name in self._mapped if slot is not None else self._pool.has_free(nbytes)

    def read(self, slot: MemorySlot, nbytes: int, lead: int = 0, into: memoryview | None = None) -> memoryview:
        """Copy a payload out, into a new buffer where none of its size is given; raises PayloadLost."""
        with self._lock:
            reading = self._mapped.pop(slot.name, None)
        if reading is None:
            reading = Reading(self._folder, slot.name, self._pipeline)
        if into is None:
            reading.check(slot, nbytes)  # before so many bytes are allocated: the number may come from anybody
        target = self._targets.take(nbytes, lead) if into is None else into
        reading.copy(slot, target)
        with self._lock:
            self._mapped[slot.name] = reading
            while len(self._mapped) > _MOST_MAPPED:
                self._mapped.popitem(last=False)
        return target

    def free(self, rid: str, run: int) -> None:
        """Free what this run of a request and earlier ones have in the pool, and in what the dead left; idempotent."""
        self._pool.free(rid, run)
        with self._lock:
            self._remove({name for name, left in self._left.items() if left.rid == rid and left.run <= run})

    def sweep(self, now: float, age: float) -> list[str]:
        """Release what nobody wants at `now` (since the epoch), and take over what the dead left.

        Returns the requests that have had something in memory for longer than `age` seconds, or that a dead process had: an
        orchestrator knows whether they have ended.
        """
        self._pool.trim(now)
        self._targets.trim()
        with self._lock:
            for name in [name for name, reading in self._mapped.items() if not reading.path.exists()]:
                del self._mapped[name]
        left = dict(abandoned(self._folder))
        gone = {name for name, found in left.items() if found is None or not found.generation or found.expires <= now}
        ours = {name: found for name, found in left.items() if found is not None and found.pipeline == self._pipeline}
        with self._lock:
            self._left = ours
            self._remove(gone)
            return list(dict.fromkeys((*self._pool.older_than(age), *(found.rid for found in ours.values()))))

    def close(self) -> None:
        """Remove what no request needs; the rest is for the other processes of the host, and their sweeps."""
        self._pool.close()
        with self._lock:
            self._mapped.clear()

    def _remove(self, names: set[str]) -> None:
        for name in names:
            self._left.pop(name, None)
            with suppress(PermissionError):  # another user's, who removes it
                (self._folder / name).unlink(missing_ok=True)


def open_memory(pipeline: str, limit: int, folder: Path = SHARED_MEMORY) -> HostMemory | None:
    """The memory of this host; None where the limit is 0, where there is none or no room, and where it may not be written."""
    if not limit or not folder.is_dir():
        return None
    try:
        return HostMemory(pipeline, limit, folder)
    except OSError as error:
        log.warning(LogEvent.MEMORY_UNAVAILABLE, folder=str(folder), error=str(error))
        return None


def abandoned(folder: Path = SHARED_MEMORY) -> Iterator[tuple[str, Contents | None]]:
    """Files of processes of this host that have ended, and what is in them."""
    return ((path.name, contents_of(path)) for path, lives in _files(folder) if not lives)


def remove_abandoned(pids: Collection[int], folder: Path = SHARED_MEMORY) -> None:
    """Remove what these processes left when they ended, for the one that started them and ends itself.

    Where others of a pipeline live on this host, they see to it: they may need it. Nobody else would, and requests that are
    open run again when they are served again.
    """
    living = (contents_of(path) for path, lives in _files(folder) if lives)
    served = {found.pipeline for found in living if found is not None}
    for name, found in abandoned(folder):
        owner = owner_of(name, folder) or ""
        if int(owner.partition("-")[0]) in pids and (found is None or found.pipeline not in served):
            with suppress(PermissionError):  # another user's
                (folder / name).unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Files, and whether the process lives that made them; True for those of other hosts, of which we do not know."""
    lives = cache(is_alive)  # a look a process, of which each has many files
    for path in folder.glob("omnibus-*"):
        owner = owner_of(path.name, folder)
        yield path, owner is None or lives(owner)
