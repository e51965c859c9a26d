"""Plots of the results of a run, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (7.0, 3.4)


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture."""

    bench: str
    file: str
    title: str
    draw: Callable[[Axes, Mapping[str, Any]], None]


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Draw the plots of all benches that were run."""
    import matplotlib as mpl  # noqa: PLC0415 a run without pictures needs none of it

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        if plot.bench not in results["figures"]:
            continue
        figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
        plot.draw(axes, results)
        axes.set_title(plot.title, loc="left")
        figure.savefig(folder / plot.file, dpi=120, metadata={"Software": None})
        plt.close(figure)


def _cpu_of_hops(axes: Axes, results: Mapping[str, Any]) -> None:
    """CPU of a request as a bar a system, in the colours of the processes."""
    systems: Mapping[str, Mapping[str, float]] = results["detail"]["hops"]["detail"]["cpu_ms"]
    left = dict.fromkeys(systems, 0.0)
    for role in dict.fromkeys(role for parts in systems.values() for role in parts):
        widths = [parts.get(role, 0.0) for parts in systems.values()]
        axes.barh(list(systems), widths, left=list(left.values()), label=role)
        left = {name: start + width for (name, start), width in zip(left.items(), widths, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel("CPU of a request, ms")
    axes.legend(fontsize="x-small")


def _rates_of_scaling(axes: Axes, results: Mapping[str, Any]) -> None:
    detail = results["detail"]["scaling"]["detail"]
    counts = [int(count) for count in detail["rates"]]
    axes.plot(counts, list(detail["ideal"].values()), linestyle="dotted", label="what the engines can do")
    axes.plot(counts, list(detail["rates"].values()), marker="o", label="measured")
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("replicas a stage")
    axes.set_ylabel("requests a second")
    axes.legend()


def _policies_of_makespan(axes: Axes, results: Mapping[str, Any]) -> None:
    figures: Mapping[str, float] = results["figures"]["makespan"]
    bars = {"measured": figures["over_bound_1_to_50"]}
    bars |= {name.removeprefix("model."): value for name, value in figures.items() if name.startswith("model.")}
    axes.barh(list(bars), list(bars.values()))
    axes.axvline(1.0, color="black", linestyle="dotted")
    axes.invert_yaxis()
    axes.set_xlabel("time until all is done, over the lower bound (costs 1:50)")


def _waits_of_failover(axes: Axes, results: Mapping[str, Any]) -> None:
    waits = results["detail"]["failover"]["detail"]["waits_ms"]
    axes.plot(waits, [(index + 1) / len(waits) for index in range(len(waits))], drawstyle="steps-post")
    axes.set_xlim(left=0)
    axes.set_xlabel("ms from kill -9 to the next start")
    axes.set_ylabel("share of tasks")


PLOTS = (
    Plot("hops", "bench-hops.png", "Two no-op stages: CPU of a request", _cpu_of_hops),
    Plot("scaling", "bench-scaling.png", "Three stages of 50 ms", _rates_of_scaling),
    Plot("makespan", "bench-makespan.png", "A batch of mixed costs on four replicas", _policies_of_makespan),
    Plot("failover", "bench-failover.png", "Tasks of killed replicas", _waits_of_failover),
)
