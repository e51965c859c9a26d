"""Samples of processes that live through the whole run, of the broker, and of shared memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import httpx

from omnibus.requests.record import ENDED_TTL
from omnibus.wire import stores
from tests.chaos.setups import Arena
from tests.chaos.soak.slopes import Allowance
from tests.support.memory import shared_memory

_MIB = 1 << 20
_TASKS = re.compile(rb"^omnibus_asyncio_tasks\{[^}]*\} (\S+)", re.MULTILINE)

ALLOWANCES: Mapping[str, Allowance] = {
    "rss": Allowance(share=0.05, amount=3 * _MIB),
    "fds": Allowance(amount=8),
    "threads": Allowance(amount=2),
    "tasks": Allowance(amount=40),
    "shm": Allowance(amount=8),  # payloads that are under way come and go
    "stream": Allowance(amount=200),
    "ledger": Allowance(share=0.1),
}
"""By the last word of a series' name: bytes, counts, and for the ledger messages a request of the time that it keeps them."""


async def sample(arena: Arena, lasting: Mapping[str, int]) -> dict[str, float]:
    """One value a series; `lasting` are processes by name."""
    values: dict[str, float] = {}
    for name, pid in lasting.items():
        values |= {f"{name} {what}": value for what, value in process(pid).items()}
    async with httpx.AsyncClient(base_url=arena.cluster.url, timeout=5.0) as client:
        found = _TASKS.search((await client.get("/metrics")).content)
    assert found is not None
    values["frontdoor tasks"] = float(found[1])
    values["files shm"] = len(shared_memory())
    return values | await _streams(arena)


def process(pid: int) -> dict[str, float]:
    """Resident memory in bytes, open descriptors, threads."""
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return {
        "rss": float(status["VmRSS"].split()[0]) * 1024,
        "fds": float(sum(1 for _ in (folder / "fd").iterdir())),
        "threads": float(status["Threads"]),
    }


async def lifetimes(arena: Arena) -> dict[str, float]:
    """Seconds that a series of the ledger keeps what belongs to an ended request, by its name."""
    stream = f"OBJ_{stores.payloads_bucket(arena.cluster.spec.name)}"
    config = (await arena.cluster.connection.api(f"STREAM.INFO.{stream}"))["config"]
    return {"records ledger": ENDED_TTL, "objects ledger": config["max_age"] / 1e9}


async def _streams(arena: Arena) -> dict[str, float]:
    """Messages in every stream; those of the ledger apart, which keeps what has ended for a while."""
    connection, pipeline = arena.cluster.connection, arena.cluster.spec.name
    streams = {
        "work stream": stores.work_stream(pipeline),
        "requests stream": stores.requests_stream(pipeline),
        "replicas stream": f"KV_{stores.replicas_bucket(pipeline)}",
        "records ledger": f"KV_{stores.requests_bucket(pipeline)}",
        "objects ledger": f"OBJ_{stores.payloads_bucket(pipeline)}",
    }
    infos = await asyncio.gather(*(connection.api(f"STREAM.INFO.{stream}") for stream in streams.values()))
    return {name: float(info["state"]["messages"]) for name, info in zip(streams, infos, strict=True)}
