"""`python -m bench.scale`: reproduces what was measured, then asks what becomes of more replicas; draws docs/images/scale.png."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.table import Table

from bench.command import console
from bench.scale import fan_out
from bench.scale.cluster import Cluster, Outcome, Shape
from bench.scale.costs import Costs, measured, renew
from bench.scale.points import Point, fitted, points
from omnibus.observability.logging import configure_logging

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "scale.png"
REPLICAS = (30, 99, 300, 600, 999)
"""Numbers of replicas, three stages together."""
AS_IT_IS = Shape(stages=3, slots=1, latency=0.05, spread=True, orchestrators=2, producers=8)
SHAPES = {
    "as it is: 2 orchestrators, one stream": AS_IT_IS,
    "8 orchestrators": replace(AS_IT_IS, orchestrators=8),
    "8 orchestrators, 8 streams": replace(AS_IT_IS, orchestrators=8, streams=8),
    "the same, supervisors hear no others' claims": replace(AS_IT_IS, orchestrators=8, streams=8, claims_of_all=False),
}
_ABREAST = 1.2
"""Requests in flight for each replica."""


def study(costs: Costs, seed: int, replicas: Sequence[int], seconds: float) -> dict[str, dict[int, Outcome]]:
    """The outcome by shape and number of replicas; each replica does twenty tasks a second if it never waits."""
    outcomes: dict[str, dict[int, Outcome]] = {}
    for name, shape in SHAPES.items():
        for number in replicas:
            sized = replace(shape, replicas=number // shape.stages)
            requests = int(seconds * sized.replicas / shape.latency)
            outcomes.setdefault(name, {})[number] = Cluster(sized, costs, seed).load(int(_ABREAST * number), requests)
    return outcomes


def share(number: int, outcome: Outcome) -> float:
    """The rate beside that of engines that never wait."""
    return outcome.rate * AS_IT_IS.latency / (number // AS_IT_IS.stages)


def show(found: Sequence[Point], outcomes: dict[str, dict[int, Outcome]]) -> None:
    """Print both tables."""
    table = Table("figure", "measured", "simulated", "error", title="What was measured", title_justify="left")
    for point in found:
        table.add_row(point.name, f"{point.measured:.4g}", f"{point.simulated:.4g}", f"{point.error:+.0%}")
    console.print(table)
    head = (
        "replicas",
        "requests/s",
        "share",
        "p99, s",
        "broker, cores",
        "one stream",
        "an orchestrator",
        "a supervisor",
    )
    for name, each in outcomes.items():
        table = Table(*head, title=name, title_justify="left")
        for number, outcome in each.items():
            roles = ("broker, all of it", "broker", "orchestrator", "supervisor")
            busy = (f"{outcome.used[role] / outcome.seconds:.0%}" for role in roles)
            cells = (f"{outcome.rate:,.0f}", f"{share(number, outcome):.0%}", f"{outcome.latency(99):.2f}")
            table.add_row(str(number), *cells, *busy)
        console.print(table)


def draw(outcomes: dict[str, dict[int, Outcome]], file: Path) -> None:
    """The share of what the engines could do, by the number of replicas."""
    import matplotlib as mpl  # noqa: PLC0415 only a picture needs it

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7.0, 3.4), layout="constrained")
    for name, each in outcomes.items():
        axes.plot(list(each), [share(number, outcome) for number, outcome in each.items()], marker="o", label=name)
    axes.set(
        xscale="log", ylim=(0.0, 1.05), xlabel="replicas, three stages together", ylabel="of what the engines could do"
    )
    axes.set_title("Simulated: three stages of 50 ms", loc="left")
    axes.legend(fontsize="x-small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Simulate; with `--hops` and `--scaling`, the last lines of those benches, renew what is measured first."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="simulated seconds of load for each figure")
    parser.add_argument("--hops", type=Path, help="a file with the output of python -m bench.hops")
    parser.add_argument("--scaling", type=Path, help="the same of python -m bench.scaling")
    parser.add_argument("--source", default="", help="where and when those were measured")
    given = parser.parse_args()
    configure_logging("error")
    if given.hops is not None and given.scaling is not None:
        with tempfile.TemporaryDirectory() as folder:
            costs_us = uvloop.run(fan_out.measure(Path(folder)))
        lines = (json.loads(file.read_text().splitlines()[-1]) for file in (given.hops, given.scaling))
        renew(*lines, costs_us, given.source)
    known = measured()
    costs = fitted(known, given.seed)
    outcomes = study(costs, given.seed, REPLICAS, given.seconds)
    show(points(known, costs, given.seed), outcomes)
    draw(outcomes, IMAGE)


if __name__ == "__main__":
    main()
