"""Every metric of every process, in one container.

Base units (seconds, bytes); labels are bounded sets (pipeline, stage, state), never ids of requests.
"""

from __future__ import annotations

import asyncio
import os
from functools import cache
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
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
        """All metrics in Prometheus' text format, of type `content_type`: the sums, where processes share them."""
        if _SHARED not in os.environ:
            return generate_latest(self.registry)
        self.asyncio_tasks.set(_tasks())  # the others', as they were when those were asked last
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _add_requests(self) -> None:
        self.requests = self._counter("requests", "Requests by state at their end", "pipeline", "state")
        self.request_seconds = self._histogram("request_seconds", "Admission to the end", "pipeline", "state")
        self.refused = self._counter("requests_refused", "Requests not admitted, by error code", "pipeline", "code")
        self.redriven = self._counter("requests_redriven", "Requests run again from their input", "pipeline")

    def _add_stages(self) -> None:
        stage = ("pipeline", "stage")
        self.stage_seconds = self._histogram("stage_seconds", "A task received to its result published", *stage)
        self.queue_wait_seconds = self._histogram("queue_wait_seconds", "A task published to received", *stage)
        self.tokens = self._counter("tokens", "Tokens, kind prompt or completion", *stage, "kind")
        self.busy_slots = self._gauge("busy_slots", "Slots with a task", *stage)
        self.deliveries = self._counter("deliveries", "Tasks received, by outcome", *stage, "outcome")
        self.leases_lost = self._counter("leases_lost", "Tasks abandoned because the lease was missed", *stage)
        self.replicas = self._gauge("replicas", "Replicas by status", *stage, "status")
        self.replica_restarts = self._counter("replica_restarts", "Replicas started again after a death", *stage)

    def _add_plumbing(self) -> None:
        self.events = self._counter("events", "Events handled by orchestrators", "pipeline", "kind", "outcome")
        self.acks_failed = self._counter("acks_failed", "Acknowledgements that could not be sent", "where")
        self.errors = self._counter("errors", "Unexpected exceptions caught at a task's root", "where")
        self.reconnects = self._counter("broker_reconnects", "Connections to the broker re-established")
        self.permission_denied = self._counter("broker_permission_denied", "Calls that the broker refused")
        self.asyncio_tasks = self._gauge("asyncio_tasks", "Tasks on the event loop that is asked")
        self.asyncio_tasks.set_function(_tasks)
        self._add_payloads()
        self.flows_skipped = self._counter(
            "flows_skipped", "Sounds that a caller could not read as they were made", "pipeline"
        )
        self.pulls_reissued = self._counter("pulls_reissued", "Pull requests sent again after a loss", "stage")

    def _add_payloads(self) -> None:
        self.payload_bytes = self._counter("payload_bytes", "Bytes put outside messages", "pipeline", "location")
        self.payloads_spilled = self._counter("payloads_spilled", "Payloads that memory had no room for", "pipeline")
        self.memory_bytes = self._gauge("payload_memory_bytes", "Shared memory, held or free", "pipeline", "status")

    def _add_http(self) -> None:
        self.http_requests = self._counter("http_requests", "HTTP requests answered", "route", "status")
        self.http_seconds = self._histogram("http_seconds", "HTTP requests, from the first byte to the last", "route")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return _kept(Counter(f"{_PREFIX}_{name}", help_text, labels, registry=self.registry))

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        gauge = Gauge(f"{_PREFIX}_{name}", help_text, labels, registry=self.registry, multiprocess_mode="sum")
        return _kept(gauge)

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return _kept(Histogram(f"{_PREFIX}_{name}", help_text, labels, buckets=_LATENCIES, registry=self.registry))


def _kept(metric: MetricT) -> MetricT:
    """Look each child up once: `labels` is called for every message, and locks."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


def share_metrics(folder: Path, name: str) -> None:
    """Keep the metrics that this process makes from now on in files of a folder, where others keep theirs.

    The next process of this `name` counts on from them; so there are as many files as names.
    """
    os.environ[_SHARED] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]


def _tasks() -> float:
    """Count the tasks of the running loop; 0 off any loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
