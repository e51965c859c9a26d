"""Every metric of every process, in one container.

Base units (seconds, bytes); labels are bounded sets (pipeline, stage, state), never ids of requests. Names that vLLM has
for the same thing are vLLM's, behind our prefix. The processes of one command keep theirs in one folder, where any of them
reads all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from omnibus.observability.shared_values import shared_values

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PREFIX = "omnibus"
MetricT = TypeVar("MetricT", Counter, Gauge, Histogram)
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The variable by which prometheus_client itself knows the folder of processes that share their metrics."""


class Metrics:
    """The metrics of one process. Create one at its root and pass it down; a registry holds one container."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._add_requests()
        self._add_stages()
        self._add_plumbing()
        self._add_http()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, of type `content_type`, those of the processes that share theirs with it."""
        self.asyncio_tasks.labels("frontdoor").set(_tasks())
        return generate_latest(self.shown)

    @property
    def shown(self) -> CollectorRegistry:
        """The metrics that scrapers get: its own, or those of all processes that share theirs with it."""
        return SharedMetrics(Path(os.environ[_SHARED]).parent).registry if _SHARED in os.environ else self.registry

    def _add_requests(self) -> None:
        self.requests = self._counter("requests", "Requests by state at their end", "pipeline", "state")
        self.request_seconds = self._histogram(
            "e2e_request_latency_seconds", "Admission to the end", "pipeline", "state"
        )
        self.refused = self._counter("requests_refused", "Requests not admitted, by error code", "pipeline", "code")
        self.redriven = self._counter("requests_redriven", "Requests run again from their input", "pipeline")
        self.dead_letters = self._counter("dead_letters", "Requests whose attempts were used up", "pipeline")

    def _add_stages(self) -> None:
        stage = ("pipeline", "stage")
        self.stage_seconds = self._histogram("stage_seconds", "A task received to its result published", *stage)
        self.queue_wait_seconds = self._histogram(
            "request_queue_time_seconds", "A task published to received", *stage, "lane"
        )
        self.flow_first_chunk_seconds = self._histogram(
            "flow_first_chunk_seconds", "A task begun to the first chunk of its flow stored", *stage
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, of finished tasks", *stage)
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated, of finished tasks", *stage)
        self.busy_slots = self._gauge("num_requests_running", "Tasks that replicas work on", *stage)
        self.batch_size = self._histogram(
            "batch_size", "Tasks that a replica runs, as each of them begins", *stage, buckets=_SIZES
        )
        self.deliveries = self._counter("deliveries", "Tasks received, by outcome", *stage, "outcome")
        self.redeliveries = self._counter("redeliveries", "Tasks received again, as an attempt was lost", *stage)
        self.leases_lost = self._counter("leases_lost", "Tasks abandoned because the lease was missed", *stage)
        self.queued = self._gauge("num_requests_waiting", "Tasks that wait for a replica", *stage, "lane")
        self.queue_age = self._gauge("queue_oldest_age_seconds", "Age of the task that waits longest", *stage, "lane")
        self.replicas = self._gauge("replicas", "Replicas by status", *stage, "status")
        self.replica_restarts = self._counter("replica_restarts", "Replicas started again after a death", *stage)
        self.failover_seconds = self._histogram(
            "failover_seconds", "A replica's death noticed to its tasks being free for others", *stage
        )

    def _add_plumbing(self) -> None:
        self.events = self._counter("events", "Events handled by orchestrators", "pipeline", "kind", "outcome")
        self.acks_failed = self._counter("acks_failed", "Acknowledgements that could not be sent", "where")
        self.errors = self._counter("errors", "Unexpected exceptions caught at a task's root", "where")
        self.reconnects = self._counter("broker_reconnects", "Connections to the broker re-established")
        self.connected = self._gauge("broker_connected", "Whether the connection to the broker is there, 1 or 0")
        self.permission_denied = self._counter("broker_permission_denied", "Calls that the broker refused")
        self.asyncio_tasks = self._gauge("asyncio_tasks", "Tasks on the event loop, when it was last asked", "where")
        self._add_payloads()
        self.flows_skipped = self._counter(
            "flows_skipped", "Sounds that a caller could not read as they were made", "pipeline"
        )
        self.pulls_reissued = self._counter("pulls_reissued", "Pull requests sent again after a loss", "stage")

    def _add_payloads(self) -> None:
        place = ("pipeline", "stage", "location", "direction")
        self.payload_bytes = self._counter("payload_bytes", "Bytes outside messages, put or got by a stage", *place)
        self.payload_seconds = self._histogram("payload_seconds", "Time that each of those took", *place)
        self.payloads_spilled = self._counter("payloads_spilled", "Payloads that memory had no room for", "pipeline")
        self.memory_bytes = self._gauge("payload_memory_bytes", "Shared memory, held or free", "pipeline", "status")

    def _add_http(self) -> None:
        self.http_requests = self._counter("http_requests", "HTTP requests answered", "route", "status")
        self.http_seconds = self._histogram("http_seconds", "HTTP requests, from the first byte to the last", "route")

        self.webhooks = self._counter("webhook_attempts", "Webhooks sent, by what became of them", "outcome")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return _kept(Counter(f"{_PREFIX}_{name}", help_text, labels, registry=self.registry))

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        gauge = Gauge(f"{_PREFIX}_{name}", help_text, labels, registry=self.registry, multiprocess_mode="livesum")
        return _kept(gauge)

    def _histogram(
        self, name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = _LATENCIES
    ) -> Histogram:  # fmt: skip
        return _kept(Histogram(f"{_PREFIX}_{name}", help_text, labels, buckets=buckets, registry=self.registry))


def _kept(metric: MetricT) -> MetricT:
    """Look each child up once: `labels` is called for every message, and locks."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


def share_metrics(folder: Path | None, name: str) -> None:
    """Keep the metrics that this process makes from now on in a folder's subfolder `name`, beside those of others.

    Those of libraries, such as vLLM's, too. The next process of this name counts on from them; its gauges begin anew.
    Without a folder they stay in the process.
    """
    if folder is None:
        return
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    for gauges in own.glob("gauge_*.db"):
        gauges.unlink()
    os.environ[_SHARED] = str(own)
    values.ValueClass = shared_values(own, {})


class SharedMetrics(Collector):
    """The metrics of all processes that share theirs in a folder, each with a label `process`; those of dead ones, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """One family a name, with the samples of every process. Reads files alone: a process that hangs holds up nothing."""
        families: dict[str, Metric] = {}
        for process in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            files = [str(path) for path in process.glob("*.db") if _is_filled(path)]
            for found in MultiProcessCollector.merge(files):  # type: ignore[no-untyped-call]
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {**sample.labels, "process": process.name}, sample.value)
        yield from families.values()


def _is_filled(path: Path) -> bool:
    """Whether a file has values: one that is being made has none yet, one of gauges may go with the process before it."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _tasks() -> float:
    """Count the tasks of the running loop; 0 off any loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
