"""Looking at processes through /proc."""

from __future__ import annotations

from pathlib import Path


def children_of(pid: int, name: str = "") -> list[int]:
    """Direct children of a process, by what their command line or name contains."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            command = (stat.parent / "cmdline").read_text(errors="replace") + (stat.parent / "comm").read_text()
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z" and name in command:
            children.append(int(stat.parent.name))
    return children


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_mapped(pid: int, part: str) -> bool:
    """Whether a process has mapped a file with this part of a path, such as a library."""
    return part in Path(f"/proc/{pid}/maps").read_text()
