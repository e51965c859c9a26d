"""Bytes with a media type: inline in a message, or somewhere that a message refers to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

T = TypeVar("T")

INLINE_LIMIT = 256 * 1024
"""Largest payload that rides inside an envelope, bytes."""
ENVELOPE_LIMIT = 512 * 1024
"""Largest envelope or record with all that is inline in it, bytes."""
CARRIED_LIMIT = 32 * 1024
"""Largest request that travels on to the stages behind the first ones, which read a larger one in its record."""
RECORD_INLINE_LIMIT = 64 * 1024
"""Largest final output that is kept inside its record, bytes."""

MSGPACK = "application/msgpack"
"""An untyped value made by `codec.pack`."""
TEXT = "text/plain"
BYTES = "application/octet-stream"
PNG = "image/png"
WAV = "audio/wav"
MP4 = "video/mp4"
JSON = "application/json"


class ObjectKey(msgspec.Struct, frozen=True, tag="object"):
    """An object in the pipeline's payload store: readable from everywhere, also after its maker died."""

    key: str


class MemorySlot(msgspec.Struct, frozen=True, tag="memory"):
    """A slot of shared memory: readable on its host, also after its maker died, until the request ends."""

    host: str
    name: str
    generation: int
    """The slot holds these bytes for as long as this is its generation."""


class PeerSlot(msgspec.Struct, frozen=True, kw_only=True, tag="peer"):
    """The same slot, as the process that made it serves it over TCP: readable from other hosts while that lives."""

    host: str
    port: int
    name: str
    generation: int
    signature: bytes
    """Shows the process that a reader has this reference from it."""
    proof: bytes
    """Shows the reader that the answer is that process's: its last bytes."""


class StoredOutput(msgspec.Struct, frozen=True, tag="output"):
    """A large output of a request, in storage of the operator's."""

    url: str


Location = ObjectKey | MemorySlot | PeerSlot | StoredOutput


class Payload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes and what they are. Either `data` or `locations` is set."""

    media_type: str
    nbytes: int
    data: bytes | None = None
    locations: tuple[Location, ...] = ()
    """Places that have the bytes, in the order in which a reader tries them."""
    lead: int = 0
    """Bytes before the first large array in them, which a reader places so that its buffer is aligned."""
    viewed: int = 0
    """Bytes of large arrays in them, which unpacking does not copy."""

    @property
    def object_key(self) -> str | None:
        """The key of the bytes in the object store, None where they are not there."""
        return next((place.key for place in self.locations if isinstance(place, ObjectKey)), None)

    @property
    def in_memory(self) -> bool:
        return any(isinstance(place, MemorySlot) for place in self.locations)

    @classmethod
    def inline(cls, data: bytes, media_type: str) -> Payload:
        return cls(media_type=media_type, nbytes=len(data), data=data)


Payloads = dict[str, Payload]
"""Outputs of a stage, by declared name; those of a companion as `name@role`."""
ROLE_MARK = "@"
"""Parts the name of a companion's output from its role; no declared name has it."""


def split_by_role(outputs: Mapping[str, T]) -> tuple[dict[str, T], dict[str, dict[str, T]]]:
    """A stage's own outputs, and those of its companions by role."""
    own: dict[str, T] = {}
    by_role: dict[str, dict[str, T]] = {}
    for key, value in outputs.items():
        name, _, role = key.partition(ROLE_MARK)
        (by_role.setdefault(role, {}) if role else own)[name] = value
    return own, by_role
