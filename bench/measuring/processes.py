"""CPU time and memory of the processes behind a measurement, from the kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MARKS = {
    "nats-server": "nats-server", "redis-server": "redis-server", "bench.peers.zeromq": "zeromq",
    "bench.peers.plain_fastapi": "fastapi", "taskiq": "taskiq", "vllm.entrypoints.openai.api_server": "vllm",
    "orchestrator": "orchestrator", "frontdoor": "front door", "serve": "supervisor",
}  # fmt: skip
"""Roles of processes by a whole word of the command line; the first that fits."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one system: whole families, and single ones."""

    families: tuple[int, ...]
    """Process ids that count with all their descendants."""
    singles: tuple[int, ...] = ()
    """Process ids that count alone, such as the bench's own, whose children are others' systems."""

    def cpu(self) -> dict[int, float]:
        """CPU seconds that each has used, by process id; to the microsecond, ended threads included."""
        return _each(self.pids(), _cpu_seconds)

    def resident(self) -> dict[int, float]:
        """Resident memory of each, MiB."""
        return _each(self.pids(), _resident_mib)

    def pids(self) -> set[int]:
        """All of them that live."""
        parents, found, frontier = _parents(), set(self.singles), list(self.families)
        while frontier:
            one = frontier.pop()
            found.add(one)
            frontier += [pid for pid, parent in parents.items() if parent == one and pid not in found]
        return found


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> dict[str, float]:
    """Seconds between two readings, by role; processes of one role are added up. What ended in between is not counted."""
    total: dict[str, float] = {}
    for pid, seconds in after.items():
        role = role_of(pid)
        total[role] = total.get(role, 0.0) + seconds - before.get(pid, 0.0)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def role_of(pid: int) -> str:
    """The part of a process in its system, else the name of its program."""
    if pid == os.getpid():
        return "bench"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    if any("replica_main" in word for word in words):
        return f"replica, stage {words[words.index('--stage') + 1]}"
    names = {Path(word.partition(" ")[0]).name for word in words}
    return next((role for mark, role in _MARKS.items() if mark in names), Path(words[0]).name)


def _each(pids: set[int], read: Callable[[int], float]) -> dict[int, float]:
    values = {}
    for pid in sorted(pids):
        with suppress(OSError):  # it has just ended
            values[pid] = read(pid)
    return values


def _cpu_seconds(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)  # the process's CPU clock, as clock_getcpuclockid(3) makes it


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def _parents() -> dict[int, int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return parents
