"""Every bench, one after the other, and which rows of the table are missed: `python -m bench.all [--quick] [--write-docs]`.

The last line is one JSON object with every figure; `out/bench/results.json` keeps it with all details. Exit code 1 when a bench
failed; a missed row is a finding, not a failure. With --write-docs the table and the plots of docs/reference/benchmarks.md
are made of the results, on a quiet machine only; --results FILE takes those of an earlier run instead of measuring.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import document, plots
from bench.command import Size, console
from bench.measuring.machine import QUIET, busy_cores, describe
from bench.rows import shorts

BENCHES = ("hops", "http", "stream", "handoff", "scaling", "makespan", "failover", "idle", "overhead")
"""Those whose figures stand in the table, in its order."""
BESIDE = ("fairness", "quality", "flows")
"""Those that are run too in a full run, with an end of their own."""
RESULTS = Path("out") / "bench" / "results.json"
_LIMIT = 1800.0
"""Seconds after which a bench is given up."""


def main(words: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(words)
    if given.results is not None:
        results = json.loads(given.results.read_text())
    else:
        chosen = given.only.split(",") if given.only else list(BENCHES)
        results = run(Size(given.size), chosen, beside=not given.only and given.size == Size.FULL)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1))
    failed = sorted(results["failed"])
    refusal = _write(results, given.anyway) if given.write_docs else ""
    print(json.dumps({name: value for name, value in results.items() if name != "detail"}))
    if refusal:
        console.print(refusal, style="red")
    return 1 if failed or refusal else 0


def run(size: Size, chosen: Sequence[str], *, beside: bool) -> dict[str, Any]:
    """Run the benches, each in a process of its own, and gather what they say."""
    started, others = time.monotonic(), [busy_cores()]
    if others[0] > QUIET:
        console.print(f"others keep {others[0]:.2f} cores busy: the figures will say little", style="red")
    lines: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name in (*chosen, *(BESIDE if beside else ())):
        console.rule(name)
        try:
            flags = ("--size", size) if name in BENCHES else ()
            lines[name] = _run(name, *flags)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failed[name] = str(error)
            console.print(str(error), style="red")
        others.append(busy_cores(1.0))
    figures = {name: line.get("figures", line) for name, line in lines.items()}
    missing = {name: line.get("missing", {}) for name, line in lines.items()}
    return {
        "size": size,
        "machine": describe(),
        "others_busy_cores": round(max(others), 2),
        "quiet": max(others) <= QUIET,
        "seconds": round(time.monotonic() - started, 1),
        "figures": figures,
        "spread": {name: line.get("spread", {}) for name, line in lines.items()},
        "missing": missing,
        "failed": failed,
        "short": [asdict(short) for short in shorts(figures, missing, chosen)],
        "detail": {
            name: {key: line.get(key) for key in ("settings", "seconds", "detail")} for name, line in lines.items()
        },
    }


def _run(name: str, *flags: str) -> dict[str, Any]:
    """The line of JSON in which a bench ended; its messages go on to stderr. Raises RuntimeError when there is none."""
    ended = subprocess.run(
        (sys.executable, "-m", f"bench.{name}", *flags), stdout=subprocess.PIPE, text=True, timeout=_LIMIT, check=False
    )
    last = ended.stdout.rstrip().rpartition("\n")[2]
    if not last.startswith("{") or (name in BENCHES and ended.returncode != 0):
        raise RuntimeError(f"bench.{name} ended with {ended.returncode}")
    line: dict[str, Any] = json.loads(last)
    return line


def _write(results: dict[str, Any], anyway: bool) -> str:
    """Write the page and its plots; the reason where it is not done."""
    if not results["quiet"] and not anyway:
        return f"others kept {results['others_busy_cores']} cores busy: nothing was written; measure again on a quiet machine"
    if not (whole := set(BENCHES) <= set(results["figures"])) and not anyway:
        return f"not all benches were run ({whole=}): nothing was written"
    document.write(results)
    plots.write(results, document.IMAGES)
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", choices=list(Size), default=Size.FULL)
    size.add_argument("--quick", dest="size", action="store_const", const=Size.QUICK, help="in less than six minutes")
    parser.add_argument("--only", metavar="LIST", help=f"such as hops,http; there are {', '.join(BENCHES)}")
    parser.add_argument("--write-docs", action="store_true", help="write the table and the plots")
    parser.add_argument("--results", type=Path, metavar="FILE", help="results of an earlier run")
    parser.add_argument("--anyway", action="store_true", help="write them, though others kept the machine busy")
    return parser


if __name__ == "__main__":
    sys.exit(main())
