"""The rows of the table: what each bench must reach, as data, and which of them are missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of a bench, and its bound where it has one."""

    bench: str
    figure: str
    text: str
    unit: str = ""
    at: Literal["most", "least"] = "most"
    bound: float | None = None
    """None: shown, and never missed."""

    @property
    def name(self) -> str:
        return f"{self.bench}.{self.figure}"

    @property
    def bound_text(self) -> str:
        if self.bound is None:
            return ""
        return f"{'≤' if self.at == 'most' else '≥'} {self.bound:,g}{self.unit}"

    def missed_by(self, value: float) -> bool:
        """Whether a value does not reach the bound."""
        if self.bound is None:
            return False
        return value > self.bound + _ROUNDING if self.at == "most" else value < self.bound - _ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """A row that is missed."""

    row: str
    figure: float | None
    """None: it could not be had."""
    bound: str
    reason: str = ""


def _hops(mode: str, title: str, *, cpu: float, p50: float, rate: float) -> tuple[Row, ...]:
    def row(figure: str, text: str, **more: object) -> Row:
        return Row(bench="hops", figure=f"{mode}.{figure}", text=f"{text}, {title}", **more)  # type: ignore[arg-type]

    return (
        row("cpu_ms_beside_zeromq", "CPU a request beside ZeroMQ", unit="×", bound=cpu),
        row("p50_ms_beside_zeromq", "p50 of one in flight beside ZeroMQ", unit="×", bound=p50),
        row("rate_beside_zeromq", "rate at 64 in flight beside ZeroMQ", unit="×", at="least", bound=rate),
        row("rate_beside_taskiq", "rate at 64 in flight beside taskiq on Redis", unit="×", at="least"),
        row("p50_ms_beside_taskiq", "p50 of one in flight beside taskiq on Redis", unit="×"),
        row("p50_ms", "p50 of one in flight", unit=" ms"),
        row("rate", "rate at 64 in flight", unit=" /s", at="least"),
        row("cpu_ms", "CPU a request, 64 in flight", unit=" ms"),
        row("idle_cpu_ms", "CPU a request, one in flight", unit=" ms"),
        row("messages", "messages a request"),
        row("tasks", "asyncio tasks a request"),
    )


def _overhead() -> tuple[Row, ...]:
    tokens = {1: 1.0, 8: 1.1, 32: 1.1}
    return (
        *(
            Row(
                bench="overhead", figure=f"tokens_beside_vllm_{width}", at="least", bound=bound, unit="×",
                text=f"tokens a second beside vLLM's own server, {width} in flight",
            )
            for width, bound in tokens.items()
        ),
        Row(
            bench="overhead", figure="first_token_over_vllm_ms_1", bound=3.0, unit=" ms",
            text="median time to the first token over vLLM's own, 1 in flight",
        ),
        *(
            Row(
                bench="overhead", figure=f"first_token_beside_vllm_{width}", bound=1.0, unit="×",
                text=f"median time to the first token beside vLLM's own, {width} in flight",
            )
            for width in (8, 32)
        ),
    )  # fmt: skip


def _most(bench: str, figure: str, text: str, unit: str = "", bound: float | None = None) -> Row:
    return Row(bench=bench, figure=figure, text=text, unit=unit, bound=bound)


def _least(bench: str, figure: str, text: str, unit: str = "", bound: float | None = None) -> Row:
    return Row(bench=bench, figure=figure, text=text, unit=unit, at="least", bound=bound)


ROWS: tuple[Row, ...] = (
    *_hops("orchestrator", "the orchestrator forwards", cpu=4.5, p50=4.0, rate=0.22),
    *_hops("direct", "workers forward directly", cpu=3.5, p50=3.2, rate=0.30),
    _least("http", "omnibus.rate_beside_fastapi", "requests a second beside a bare FastAPI app", "×", 0.25),
    _most("http", "omnibus.p99_ms", "p99 at 32 in flight", " ms", 50.0),
    _least("http", "omnibus.rate", "requests a second", " /s"),
    _most("http", "omnibus.cpu_ms", "CPU a request, the client's left out", " ms"),
    _least("stream", "fast.tokens_a_second", "tokens to 64 clients, of 25,000 /s that are made", " /s", 20_000),
    _most("stream", "fast.cpu_us", "CPU a token when they come fast, the clients' left out", " µs", 40.0),
    _most("stream", "paced.added_p99_ms", "added to the pause between tokens at 5,000 /s, p99", " ms", 2.0),
    _least("stream", "burst.tokens_a_second", "tokens to 64 clients, made as fast as possible", " /s"),
    _most("stream", "fast.tokens_an_event", "tokens joined in one event of a client, at 25,000 /s"),
    _least("handoff", "same_host.gb_a_second", "64 MiB between stages, same host", " GB/s", 3.0),
    _least("handoff", "same_host.beside_memcpy", "the same beside one memcpy", "×", 0.5),
    _least("handoff", "tcp.gb_a_second", "64 MiB between stages, TCP on loopback", " GB/s", 1.2),
    _least("handoff", "object.gb_a_second", "64 MiB between stages, object store", " GB/s"),
    _most("handoff", "same_host.mib_over_noop_ms", "p50 of 1 MiB over that of a no-op hop", " ms", 1.0),
    _least("scaling", "linear_share", "throughput of 4 replicas a stage, of 4 times that of 1", "×", 0.95),
    _most("scaling", "p99_wide_beside_one", "p99 at 16 replicas a stage beside that at 1", "×", 1.5),
    _most("makespan", "over_bound_worst", "batch of costs 1:1 to 1:50 on 4 replicas, over the lower bound", "×", 1.10),
    *(
        _most("makespan", f"model.{policy}", f"costs 1:50 in a model without overhead, {policy}", "×")
        for policy in ("shared-queue", "random", "round-robin", "least-queue-length")
    ),
    _most("failover", "p50_ms", "a task waits after kill -9 of its replica, p50", " ms", 50.0),
    _most("failover", "p99_ms", "a task waits after kill -9 of its replica, p99", " ms", 250.0),
    _most("idle", "cpu_percent_most", "CPU of the busiest idle process but nats-server", " %", 0.3),
    _most("idle", "cpu_percent_broker", "CPU of the idle nats-server", " %", 1.0),
    _most("idle", "memory_mib_most", "memory of the largest idle process", " MiB", 80.0),
    *_overhead(),
)


def shorts(
    figures: Mapping[str, Mapping[str, float]], missing: Mapping[str, Mapping[str, str]], benches: Sequence[str]
) -> list[Short]:
    """The rows of these benches that are missed; one whose figure could not be had is missed, with the reason."""
    found = []
    for row in ROWS:
        if row.bench not in benches or row.bound is None:
            continue
        value = figures.get(row.bench, {}).get(row.figure)
        if value is None:
            reason = missing.get(row.bench, {}).get(row.figure, "the bench did not measure it")
            found.append(Short(row=row.name, figure=None, bound=row.bound_text, reason=reason))
        elif row.missed_by(value):
            found.append(Short(row=row.name, figure=value, bound=row.bound_text))
    return found
