"""`python -m tests.simulation --seed N`: one interleaving with its schedule; `--seeds A..B`: many, on all cores."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.graphs import GRAPHS
from tests.simulation.holes import HOLES
from tests.simulation.sweep import sweep
from tests.simulation.world import simulate


def main() -> int:
    given = _parse()
    if given.seed is not None:
        outcome = simulate(given.seed, traced=True, hole=given.hole, hosted=given.hosted, graph=given.graph)
        print(outcome)
        return int(bool(outcome.violations))
    began, failed = time.perf_counter(), 0
    for outcome in sweep(given.seeds, hole=given.hole, hosted=given.hosted, graph=given.graph):
        print(outcome)
        failed += 1
    seconds = time.perf_counter() - began
    print(f"{len(given.seeds)} interleavings, {failed} broke a promise; {len(given.seeds) / seconds:.0f} a second")
    return int(failed > 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="replay this one and print its schedule")
    which.add_argument("--seeds", type=_range, metavar="A..B", help="run these, B left out")
    parser.add_argument("--hole", choices=sorted(HOLES), help="plant a hole, which the simulation must find")
    parser.add_argument("--graph", choices=sorted(GRAPHS), help="the pipeline, instead of one that the seed draws")
    parser.add_argument("--hosted", action="store_true", help="payloads go through shared memory of one host or two")
    return parser.parse_args()


def _range(text: str) -> range:
    first, _, last = text.partition("..")
    return range(int(first), int(last))


if __name__ == "__main__":
    sys.exit(main())
