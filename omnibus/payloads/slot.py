"""A slot: one file of shared memory, with a header and the bytes of one payload at a time.

The header's generation is 0 while the bytes are no payload's, and another number for each that was written. A reader compares
it before and after it copies: bytes that were overwritten meanwhile are lost, and never mistaken for others.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omnibus.errors import PayloadLost
from omnibus.payloads.copying import copy
from omnibus.payloads.host import host_id, own_name
from omnibus.wire.codec import Buffer
from omnibus.wire.lazy_numpy import np
from omnibus.wire.payload import MemorySlot

HEADER = 4096
"""Bytes before those of the payload: a page, so that these begin on one."""
_MAGIC = 0x4F4D4E4942555331  # OMNIBUS1
_FIELDS = struct.Struct("=QQQdI64s64s")  # magic, generation, nbytes, expiry, run, request, pipeline
_NAME = re.compile(r"omnibus-([0-9a-f]{12})-(\d+-\d+)-\d+")


@dataclass(frozen=True, slots=True)
class Contents:
    """The header of a slot: its payload, and the pipeline of its process."""

    generation: int
    """0: it holds no payload."""
    nbytes: int
    expires: float
    """Seconds since the epoch after which no reader can want it."""
    run: int
    rid: str
    pipeline: str


def slot_name(number: int, folder: Path) -> str:
    """The name of a file of this process; `owner_of` reads it."""
    return f"omnibus-{host_id(folder)}-{own_name()}-{number}"


def owner_of(name: str, folder: Path) -> str | None:
    """The process that made a file, None for one that is not ours, or of processes that we cannot see."""
    found = _NAME.fullmatch(name)
    return found[2] if found is not None and found[1] == host_id(folder) else None


def opened(path: Path) -> int:
    """A descriptor of one of this user's files; raises OSError for all else.

    Everybody may put something under such a name, with other bytes, or a pipe that is never opened at its other end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if found.st_uid == os.geteuid() and stat.S_ISREG(found.st_mode):
        return descriptor
    os.close(descriptor)
    raise PermissionError(f"{path} is another user's, or no file")


def contents_of(path: Path) -> Contents | None:
    """The header of a file, None for one that is gone or no slot of this user's."""
    try:
        with os.fdopen(opened(path), "rb") as file:
            return _contents(file.read(_FIELDS.size))
    except OSError:
        return None


def _contents(data: Buffer | mmap.mmap) -> Contents | None:
    if len(data) < _FIELDS.size:
        return None
    magic, generation, nbytes, expires, run, rid, pipeline = _FIELDS.unpack_from(data)
    if magic != _MAGIC:
        return None
    return Contents(generation, nbytes, expires, run, _text(rid), _text(pipeline))


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode(errors="replace")


class OwnSlot:
    """A slot of this process: made, written, freed and removed by it alone, by one thread at a time."""

    def __init__(self, folder: Path, number: int, capacity: int, pipeline: str) -> None:
        """Raises OSError when the memory has no room: all of it is taken now, as a write beyond it would kill the process."""
        self.capacity, self.name = capacity, slot_name(number, folder)
        self._path = folder / self.name
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, HEADER + capacity)
            self._map = mmap.mmap(descriptor, HEADER + capacity, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map)[:16].cast("Q")  # written and read as whole words
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)[HEADER:]
        self._generation, self._pipeline = 0, pipeline.encode()
        _FIELDS.pack_into(self._map, 0, _MAGIC, 0, 0, 0.0, 0, b"", self._pipeline)

    def write(self, parts: Iterable[Buffer], *, rid: str, run: int, expires: float) -> int:
        """Copy a payload into it, and return its generation."""
        at = 0
        for part in parts:
            copy(self._bytes[at : at + len(part)], part)
            at += len(part)
        _FIELDS.pack_into(self._map, 0, _MAGIC, 0, at, expires, run, rid.encode(), self._pipeline)
        self._generation += 1
        self._words[1] = self._generation  # last: until then it holds nothing
        return self._generation

    def free(self) -> None:
        """Its bytes are no payload's any more: readers that come, or are at it, find them lost."""
        self._words[1] = 0

    def remove(self) -> None:
        """Give the memory back."""
        self.free()
        self._path.unlink(missing_ok=True)


class Reading:
    """A slot of a pipeline as others see it, mapped for as long as this is kept."""

    def __init__(self, folder: Path, name: str, pipeline: str) -> None:
        """Raises PayloadLost for one that is gone, or of another pipeline."""
        self.path = folder / name
        try:
            if owner_of(name, folder) is None:
                raise FileNotFoundError(name)
            descriptor = opened(self.path)
            try:
                self._map = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise PayloadLost(f"shared memory {name} is gone") from error
        found = _contents(self._map)
        if found is None or found.pipeline != pipeline:
            raise PayloadLost(f"shared memory {name} is none of pipeline {pipeline}")
        self._words = memoryview(self._map)[:24].cast("Q")
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)[HEADER:]

    def check(self, slot: MemorySlot, nbytes: int) -> None:
        """Raises PayloadLost when the slot holds another payload, none, or fewer bytes."""
        self._check(slot)
        if not 0 <= nbytes <= self._words[2]:
            raise PayloadLost(f"shared memory {slot.name} has {self._words[2]} bytes and not {nbytes}")

    def copy(self, slot: MemorySlot, into: memoryview) -> None:
        """Copy the payload out; raises PayloadLost when the slot holds, or held meanwhile, another one or none."""
        self.check(slot, len(into))
        copy(np.frombuffer(into, dtype=np.uint8), self._bytes[: len(into)])
        self._check(slot)

    def _check(self, slot: MemorySlot) -> None:
        if self._words[0] != _MAGIC or self._words[1] != slot.generation:
            raise PayloadLost(f"shared memory {slot.name} has been freed")
