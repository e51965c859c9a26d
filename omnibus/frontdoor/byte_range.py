"""A part of a file that a caller asks for with the header `Range`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from omnibus.errors import RequestError

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class RangeNotSatisfiable(RequestError, code="range_not_satisfiable", http_status=416):
    """The file has no bytes in this range."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the file has {size} bytes")
        self.headers = {"Content-Range": f"bytes */{size}"}


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `first` to `last`, which is one of them, of `size`."""

    first: int
    last: int
    size: int

    @property
    def nbytes(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        """The value of `Content-Range`."""
        return f"bytes {self.first}-{self.last}/{self.size}"


def requested_range(header: str | None, size: int) -> ByteRange | None:
    """The range that a header asks for; None for the whole file, also where it asks for several parts or in another unit.

    Raises RangeNotSatisfiable when it begins behind the end.
    """
    found = _RANGE.fullmatch((header or "").replace(" ", ""))
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:  # the last so many
        first, last = max(size - int(found[2]), 0), size - 1
    else:
        first, last = int(found[1]), min(int(found[2] or size), size - 1)
        if found[2] and int(found[2]) < first:
            return None
    if first > last:
        raise RangeNotSatisfiable(size)
    return ByteRange(first, last, size)
