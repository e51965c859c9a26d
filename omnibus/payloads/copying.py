"""Copies of large buffers, which let all other threads run meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from omnibus.wire.codec import Buffer
from omnibus.wire.lazy_numpy import np

_WORTH_TWO = 8 << 20
"""Bytes from which a copy is shared between two threads: one does not use all of a memory's bandwidth."""

if TYPE_CHECKING:
    _Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_second = ThreadPoolExecutor(2, "payload-copy")


def copy(target: _Bytes, source: Buffer | _Bytes) -> None:
    """Copy the bytes of `source` to `target`, which is as long; for a thread."""
    given = source if isinstance(source, np.ndarray) else np.frombuffer(source, dtype=np.uint8)
    half = len(given) // 2 if len(given) >= _WORTH_TWO else 0
    rest = _second.submit(np.copyto, target[:half], given[:half]) if half else None
    np.copyto(target[half:], given[half:])  # a slice's assignment would keep the interpreter's lock
    if rest is not None:
        rest.result()
