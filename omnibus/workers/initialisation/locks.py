"""One initialisation a device at a time, across all processes of this machine: exclusive file locks."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PAUSE = 0.05
"""Seconds between tries: the kernel tells nobody that a lock came free who would also listen to a deadline."""
_HOLDER_BYTES = 200


@dataclass(frozen=True, slots=True)
class DeviceLock:
    """A device that this process initialises."""

    device: str
    fd: int


async def acquire_device_locks(
    devices: str, *, timeout: float, holder: str = "", folder: Path | None = None
) -> list[DeviceLock]:
    """Lock the comma-separated devices, named as the machine names them; empty `devices` lock nothing.

    Engines measure free memory while they load, so two of them on one device mislead each other. The locks are files in
    `folder` (the system's temporary one), taken in one order by all processes, and gone with this one whatever becomes of
    it. `holder` is the name that others see. Raises TimeoutError naming device and holder after `timeout` seconds; then, and
    when cancelled, none is held. The same device under two names, an index and a UUID, is locked twice.
    """
    until = time.monotonic() + timeout
    locks: list[DeviceLock] = []
    try:
        for device in sorted({entry.strip() for entry in devices.split(",") if entry.strip()}):
            fd = await _lock(_file(device, folder), until, device)
            locks.append(DeviceLock(device, fd))
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{holder or 'a process'} (pid {os.getpid()})".encode()[:_HOLDER_BYTES], 0)
    except BaseException:
        release_device_locks(locks)
        raise
    return locks


def release_device_locks(locks: Iterable[DeviceLock]) -> None:
    """Unlock; idempotent. Also for children that were forked meanwhile and hold the files open."""
    for lock in locks:
        with suppress(OSError):
            fcntl.flock(lock.fd, fcntl.LOCK_UN)
            os.close(lock.fd)


async def _lock(file: Path, until: float, device: str) -> int:
    fd = _open(file)
    try:
        while not _try(fd):
            _check_time(until, device, fd)
            await asyncio.sleep(_PAUSE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_time(until: float, device: str, fd: int) -> None:
    if time.monotonic() > until:
        held_by = os.pread(fd, _HOLDER_BYTES, 0).decode(errors="replace") or "another process"
        raise TimeoutError(f"device {device} is still being initialised by {held_by}")


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(file: Path) -> int:
    """Opened before it is created: in a sticky folder the kernel refuses O_CREAT on a file of somebody else."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(FileNotFoundError):
        return os.open(file, flags)
    try:
        fd = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(file, flags)
    os.fchmod(fd, 0o666)  # whatever the umask: other users initialise the same devices
    return fd


def _file(device: str, folder: Path | None) -> Path:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", device)
    return (folder or Path(tempfile.gettempdir())) / f"omnibus-device-{name}.lock"
