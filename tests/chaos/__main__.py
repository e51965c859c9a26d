"""`make chaos`: every nemesis, a table, and the totals as the last line. CHAOS_SEED, CHAOS_ONLY=kill-replica,poison."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from omnibus.observability.logging import configure_logging
from tests.chaos import report
from tests.chaos.nemeses.table import NEMESES, Nemesis
from tests.chaos.scenario import Outcome, fight
from tests.chaos.setups import ARENAS, Arena

LEAST_ACCEPTED = 2000
"""Requests that a whole run must have had accepted, to say anything."""
KEEP = Path("out") / "chaos"
"""Where histories of scenarios are kept that are not clean."""


def main() -> None:
    """Exit code 0 when every row is clean, and 1 else."""
    seed = int(os.environ.get("CHAOS_SEED", "1"))
    only = frozenset(filter(None, os.environ.get("CHAOS_ONLY", "").split(",")))
    unknown = only - {nemesis.name for nemesis in NEMESES}
    if unknown:
        sys.exit(f"CHAOS_ONLY names no nemesis: {', '.join(sorted(unknown))}")
    chosen = [nemesis for nemesis in NEMESES if not only or nemesis.name in only]
    configure_logging("error", "console")
    outcomes = uvloop.run(run(chosen, seed))
    numbers = report.totals(outcomes)
    enough = bool(only) or numbers["accepted"] >= LEAST_ACCEPTED
    if not enough:
        say(f"only {numbers['accepted']} requests were accepted; a run needs {LEAST_ACCEPTED}")
    say(report.json_line(numbers))
    sys.exit(0 if enough and all(outcome.clean for outcome in outcomes) else 1)


async def run(chosen: Sequence[Nemesis], seed: int) -> list[Outcome]:
    """Fight all, arena by arena; after one that left anything wrong the next has a fresh arena."""
    say(f"CHAOS_SEED={seed}; one alone: make chaos CHAOS_SEED={seed} CHAOS_ONLY=<nemesis>")
    say(report.heading())
    outcomes: list[Outcome] = []
    for name in ARENAS:
        waiting = [nemesis for nemesis in chosen if nemesis.arena == name]
        while waiting:
            waiting = await _fight_in(name, waiting, seed, outcomes)
    return outcomes


async def _fight_in(name: str, waiting: list[Nemesis], seed: int, outcomes: list[Outcome]) -> list[Nemesis]:
    """Fight in one arena, until all are done or one left something wrong; returns those that are left."""
    with tempfile.TemporaryDirectory(prefix="omnibus-chaos-", ignore_cleanup_errors=True) as folder:
        async with AsyncExitStack() as stack:
            arena: Arena = await stack.enter_async_context(ARENAS[name](Path(folder) / name))
            for index, nemesis in enumerate(waiting):
                outcome = await fight(arena, nemesis, seed, keep=KEEP / f"seed-{seed}")
                outcomes.append(outcome)
                say(report.row(outcome))
                if not outcome.clean:
                    keep_logs(arena, KEEP / f"seed-{seed}" / nemesis.name)
                if not outcome.verdict.clean:
                    return waiting[index + 1 :]
    return []


def keep_logs(arena: Arena, folder: Path) -> None:
    """The log of an arena's processes so far."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in arena.cluster.folder.rglob("*.log"):
        (folder / log.name).write_bytes(log.read_bytes())


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
