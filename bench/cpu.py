"""CPU time of the processes behind a measurement, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
_ROLES = ("nats-server", "bench.zeromq", "orchestrator", "serve")


def cpu_seconds(roots: Iterable[int]) -> dict[int, float]:
    """User and system time of these processes and all their descendants, by process id."""
    parents, used = _table()
    wanted, frontier = set(roots), list(roots)
    while frontier:
        parent = frontier.pop()
        children = [pid for pid, its_parent in parents.items() if its_parent == parent and pid not in wanted]
        wanted.update(children)
        frontier.extend(children)
    return {pid: used[pid] for pid in wanted if pid in used}


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> dict[str, float]:
    """Seconds between two readings, by what the process is; the same kinds are added up."""
    total: dict[str, float] = {}
    for pid, seconds in after.items():
        role = _role(pid)
        total[role] = total.get(role, 0.0) + seconds - before.get(pid, seconds)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _table() -> tuple[dict[int, int], dict[int, float]]:
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) * _TICK
    return parents, used


def _role(pid: int) -> str:
    if pid == os.getpid():
        return "producer"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except FileNotFoundError:
        return "gone"
    if any("replica_main" in word for word in words):
        return f"replica, stage {words[words.index('--stage') + 1]}"
    return next((role for role in _ROLES if any(role in word for word in words)), words[0])
