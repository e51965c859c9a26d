"""This host, and the processes on it: who can read a shared memory, and whether its owner lives."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 the kernel's own place for it


@cache
def host_id(folder: Path = SHARED_MEMORY) -> str:
    """A name of all processes that share this folder of memory and can see each other; another after each boot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    place, namespace = folder.stat(), Path("/proc/self/ns/pid").stat().st_ino
    return hashlib.sha256(f"{boot} {namespace} {place.st_dev} {place.st_ino}".encode()).hexdigest()[:12]


def start_time(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None when it has ended. With its id it names one process for ever."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(fields[18])


def own_name() -> str:
    """The process that calls, as `<pid>-<start>`."""
    pid = os.getpid()
    return f"{pid}-{start_time(pid)}"


def is_alive(name: str) -> bool:
    """Whether the process of this name lives."""
    pid, _, start = name.partition("-")
    return str(start_time(int(pid))) == start
