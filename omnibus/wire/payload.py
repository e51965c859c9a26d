"""Bytes with a media type: inline in a message, or somewhere that a message refers to."""

from __future__ import annotations

import msgspec

INLINE_LIMIT = 256 * 1024
"""Largest payload that rides inside an envelope, bytes."""
ENVELOPE_LIMIT = 512 * 1024
"""Largest envelope or record with all that is inline in it, bytes."""
RECORD_INLINE_LIMIT = 64 * 1024
"""Largest final output that is kept inside its record, bytes."""

MSGPACK = "application/msgpack"
"""An untyped value made by `codec.pack`."""
TEXT = "text/plain"
PNG = "image/png"
WAV = "audio/wav"
JSON = "application/json"


class ObjectKey(msgspec.Struct, frozen=True, tag="object"):
    """An object in the pipeline's payload store: readable from everywhere, also after its maker died."""

    key: str


class Payload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes and what they are. Either `data` or `location` is set."""

    media_type: str
    nbytes: int
    data: bytes | None = None
    location: ObjectKey | None = None

    @classmethod
    def inline(cls, data: bytes, media_type: str) -> Payload:
        return cls(media_type=media_type, nbytes=len(data), data=data)


Payloads = dict[str, Payload]
"""Outputs of a stage, by declared name."""
