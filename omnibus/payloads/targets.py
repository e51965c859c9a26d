"""Buffers that payloads are copied into: those that nobody views any more are used again, as fresh pages cost another copy."""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict, deque
from functools import cache
from typing import TYPE_CHECKING, Any

from omnibus.payloads.pool import IDLE, size_class
from omnibus.wire.lazy_numpy import np

ALIGNMENT = 64
_WORTH = 1 << 20
"""Bytes from which the allocator would return a buffer to the system, and fetch new pages for the next one."""

if TYPE_CHECKING:
    _Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Targets:
    """Buffers of one process, at most `limit` bytes of them unused. For any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle = 0
        self._free: dict[int, deque[tuple[float, _Bytes]]] = defaultdict(deque)  # by size, the latest used last
        self._returned: deque[_Bytes] = (
            deque()
        )  # by finalizers, which may run at any moment, in any thread: never locked

    def take(self, nbytes: int, lead: int) -> memoryview:
        """A buffer whose byte `lead` is at an address that a large array wants. It is in use while anything views it."""
        size = size_class(nbytes + ALIGNMENT)
        root = self._take(size) if nbytes >= _WORTH else None
        if root is None:
            root = np.empty(size, dtype=np.uint8)
        at = -(root.ctypes.data + lead) % ALIGNMENT
        lent = root[at : at + nbytes].view(_lent())
        if nbytes >= _WORTH:
            weakref.finalize(lent, self._returned.append, root).atexit = False
        return memoryview(lent.data)

    def trim(self) -> None:
        """Drop what was not used for long."""
        with self._lock:
            self._collect()
            for free in self._free.values():
                while free and free[0][0] < time.monotonic() - IDLE:
                    self._idle -= len(free.popleft()[1])

    def _take(self, size: int) -> _Bytes | None:
        with self._lock:
            self._collect()
            if not (free := self._free[size]):
                return None
            self._idle -= size
            return free.pop()[1]

    def _collect(self) -> None:
        while self._returned:
            root = self._returned.popleft()
            if self._idle + len(root) <= self._limit:
                self._idle += len(root)
                self._free[len(root)].append((time.monotonic(), root))


@cache
def _lent() -> type[np.ndarray]:
    class Lent(np.ndarray):
        """A buffer in use: it lives as long as the last view of it."""

    return Lent
