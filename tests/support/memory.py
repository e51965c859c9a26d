"""Files in shared memory, as a test looks at them: others run tests on this machine, too."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from omnibus.payloads.host import SHARED_MEMORY
from omnibus.payloads.memory import abandoned
from omnibus.payloads.slot import contents_of, owner_of


def shared_memory(pipeline: str = "") -> set[Path]:
    """Files that hold a payload, or whose process has ended; of one pipeline, or of all."""
    dead = {name for name, _ in abandoned()}
    found = {path: contents_of(path) for path in SHARED_MEMORY.glob("omnibus-*")}
    return {
        path
        for path, held in found.items()
        if (path.name in dead or (held is not None and held.generation))
        and (not pipeline or held is None or held.pipeline == pipeline)
    }


def memory_of_the_dead() -> set[Path]:
    """Files whose process has ended."""
    return {SHARED_MEMORY / name for name, _ in abandoned()}


def memory_of(pids: Collection[int]) -> set[Path]:
    """Files of these processes, dead or alive."""
    return {path for path in SHARED_MEMORY.glob("omnibus-*") if _pid(path) in pids}


def _pid(path: Path) -> int:
    return int((owner_of(path.name, SHARED_MEMORY) or "0").partition("-")[0])
