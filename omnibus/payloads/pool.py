"""The slots of one process: made as they are needed up to a bound, used again by size class, removed when nobody needs them.

A fresh slot costs twelve times what a used one does. All methods are for any thread.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from omnibus.payloads.host import SHARED_MEMORY
from omnibus.payloads.packing import Packed
from omnibus.payloads.slot import HEADER, OwnSlot

SMALLEST = 64 * 1024
_numbers = itertools.count()  # of all files of this process
IDLE = 60.0
"""Seconds after which a free slot is removed."""


def size_class(nbytes: int) -> int:
    """The capacity of a slot for so many bytes: quarters of a power of two, so that at most a fifth is lost."""
    step = max(SMALLEST, 1 << max(nbytes - 1, 1).bit_length() - 1) // 4
    return max(SMALLEST, -(-nbytes // step) * step)


@dataclass(slots=True)
class Use:
    """A slot that holds a payload."""

    slot: OwnSlot
    rid: str
    run: int
    expires: float
    since: float = field(default_factory=time.monotonic)


class Pool:
    """Shared memory of this process for one pipeline, at most `limit` bytes of it."""

    def __init__(self, pipeline: str, limit: int, folder: Path = SHARED_MEMORY) -> None:
        self._pipeline, self._limit, self._folder = pipeline, limit, folder
        self._lock = threading.Lock()
        self._free: dict[int, list[tuple[float, OwnSlot]]] = defaultdict(list)  # by capacity, the latest used last
        self._used: dict[str, list[Use]] = defaultdict(list)  # by request
        self._taken = 0
        self._closed = False
        self._presence = OwnSlot(folder, next(_numbers), 0, pipeline)  # shows others that this process is there

    def put(self, packed: Packed, *, rid: str, run: int, expires: float) -> tuple[str, int] | None:
        """Copy a payload into a slot, and return its name and generation; None when there is no room."""
        slot = self._take(size_class(packed.nbytes))
        if slot is None:
            return None
        # Not under the lock, which the event loop may wait for: the slot is nobody else's yet.
        try:
            generation = slot.write(packed.parts, rid=rid, run=run, expires=expires)
        except BaseException:
            with self._lock:
                self._remove(slot)
            raise
        with self._lock:
            self._used[rid].append(Use(slot, rid, run, expires))
        return slot.name, generation

    def usage(self) -> tuple[int, int]:
        """Bytes of slots that hold a payload, or are about to, and of those that are free."""
        with self._lock:
            free = sum(HEADER + capacity for capacity, slots in self._free.items() for _ in slots)
            return self._taken - free, free

    def has_free(self, nbytes: int) -> bool:
        """Whether a slot for so many bytes is there to be used again."""
        return bool(self._free.get(size_class(nbytes)))

    def free(self, rid: str, run: int) -> None:
        """Free what this run of a request and earlier ones have; idempotent."""
        with self._lock:
            uses = self._used.pop(rid, [])
            self._release([use for use in uses if use.run <= run])
            if later := [use for use in uses if use.run > run]:
                self._used[rid] = later

    def trim(self, now: float) -> None:
        """Free what nobody can want any more at `now` (since the epoch), and remove what was not used for long."""
        with self._lock:
            for rid, uses in list(self._used.items()):
                self._release([use for use in uses if use.expires <= now])
                self._used[rid] = [use for use in uses if use.expires > now]
                if not self._used[rid]:
                    del self._used[rid]
            idle = time.monotonic() - IDLE
            for slots in self._free.values():
                while slots and slots[0][0] < idle:
                    self._remove(slots.pop(0)[1])

    def older_than(self, seconds: float) -> list[str]:
        """Requests that have had something here for longer, those first that have had it longest."""
        before = time.monotonic() - seconds
        with self._lock:
            return [rid for rid, uses in self._used.items() if uses and uses[0].since < before]

    def close(self) -> None:
        """Remove what is free. What a request still needs stays for the other processes of the host."""
        with self._lock:
            self._closed = True
            self._presence.remove()
            for slots in self._free.values():
                while slots:
                    self._remove(slots.pop()[1])

    def _take(self, capacity: int) -> OwnSlot | None:
        with self._lock:
            if slots := self._free[capacity]:
                return slots.pop()[1]
            if not self._make_room(HEADER + capacity):
                return None
            self._taken += HEADER + capacity
        try:
            return OwnSlot(self._folder, next(_numbers), capacity, self._pipeline)
        except OSError:
            with self._lock:
                self._taken -= HEADER + capacity
            return None

    def _make_room(self, nbytes: int) -> bool:
        """Remove free slots of other classes until so many bytes are within the bound, and half of what is left to all."""
        if self._closed or nbytes > self._limit:
            return False
        for slots in self._free.values():
            while slots and (self._taken + nbytes > self._limit or not self._has_room(nbytes)):
                self._remove(slots.pop(0)[1])
        return self._taken + nbytes <= self._limit and self._has_room(nbytes)

    def _has_room(self, nbytes: int) -> bool:
        system = os.statvfs(self._folder)
        return system.f_bavail * system.f_frsize >= 2 * nbytes

    def _release(self, uses: list[Use]) -> None:
        for use in uses:
            use.slot.free()
            if self._closed:
                self._remove(use.slot)
            else:
                self._free[use.slot.capacity].append((time.monotonic(), use.slot))

    def _remove(self, slot: OwnSlot) -> None:
        slot.remove()
        self._taken -= HEADER + slot.capacity
