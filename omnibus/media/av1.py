"""Packets of AV1, read as far as needed to bound what decoding one unpacks."""

from __future__ import annotations

from omnibus.errors import InvalidRequest

MAX_UNITS = 512
"""Units (OBUs) of a packet: headers, frames, and up to 128 groups of tiles a frame."""
MAX_SHOWN = 4
"""Frames that a packet shows: one a spatial layer, of which there are four."""
_FRAMES = (3, 6)  # a frame's header alone, or with its tiles
_SHOWN = 0b1001_0000
"""Bits of a frame's header: `show_existing_frame`, `show_frame`."""


def check_packet(data: bytes) -> None:
    """Raise InvalidRequest for more frames than a packet has: a few bytes each, and the decoder unpacks all of them at once."""
    at = units = shown = 0
    while at + 1 < len(data):
        units += 1
        kind, has_extension, has_size = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] & 2
        size, at = _length(data, at + 1 + has_extension) if has_size else (len(data), at + 1 + has_extension)
        shown += kind in _FRAMES and bool(data[at : at + 1] and data[at] & _SHOWN)
        if units > MAX_UNITS or shown > MAX_SHOWN:
            raise InvalidRequest("a packet of the video holds more than one frame, which AV1 does not allow")
        at += size


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A number in seven bits a byte, the lowest first, and where it ends; what is cut off counts as the whole rest."""
    number = 0
    for place, byte in enumerate(data[at : at + 8]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    return len(data), at
