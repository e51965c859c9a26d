"""CPU and memory of each process of a served pipeline that nobody asks anything."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from bench.command import Bench, Report, Size
from bench.measuring.processes import Processes, role_of
from bench.served import served

_BROKER = "nats-server"
_PIPELINE = """
name: idle
stages:
- {stage_id: 0, name: first, engine: sim}
- {stage_id: 1, name: second, engine: sim, input_sources: [0], final_output: true, final_output_type: text}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    settle: float = 5.0
    """Seconds after the start before the measurement."""
    seconds: float = 60.0


def run(settings: Settings, folder: Path) -> Report:
    """Serve two stages and look at their processes."""
    with served(_PIPELINE, folder, front_door=True) as serving:
        processes = Processes((serving.pid,))
        time.sleep(settings.settle)
        before, started = processes.cpu(), time.monotonic()
        time.sleep(settings.seconds)
        after, seconds = processes.cpu(), time.monotonic() - started
        resident, roles = processes.resident(), {pid: role_of(pid) for pid in after}
    cpu = {roles[pid]: (after[pid] - before[pid]) / seconds * 100 for pid in before if pid in after}
    memory = {roles[pid]: mib for pid, mib in resident.items() if pid in roles}
    figures = {
        "cpu_percent_most": max(share for role, share in cpu.items() if role != _BROKER),
        "cpu_percent_broker": cpu[_BROKER],
        "memory_mib_most": max(memory.values()),
    }
    detail = {
        "cpu_percent": {role: round(share, 3) for role, share in cpu.items()},
        "memory_mib": {role: round(mib, 1) for role, mib in memory.items()},
    }
    return Report(figures=figures, detail=detail)


BENCH = Bench(
    name="idle",
    summary="CPU and memory of each process when nobody asks anything.",
    sizes={
        Size.SMALLEST: Settings(settle=0.5, seconds=1.0),
        Size.QUICK: Settings(settle=3.0, seconds=10.0),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()
