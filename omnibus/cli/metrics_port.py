"""Metrics of a command with several processes: the folder in which they meet, and the port on which Prometheus finds them."""

from __future__ import annotations

import dataclasses
import errno
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import start_http_server

from omnibus.errors import ConfigError, PortTaken
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics, share_metrics
from omnibus.settings import Settings
from omnibus.workers.supervisor import ProcessSpec

log = get_logger(__name__)


@contextmanager
def shared_metrics() -> Iterator[Path]:
    """A folder for the metrics of this process, as `supervisor`, and of its children, as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="omnibus-metrics-") as folder:
        share_metrics(Path(folder), "supervisor")
        yield Path(folder)


def sharing(processes: Iterable[ProcessSpec], folder: Path) -> list[ProcessSpec]:
    """The same processes, with their metrics in the folder, each under its name; the port is their supervisor's."""
    shared = {"OMNIBUS_METRICS_DIR": str(folder), "OMNIBUS_METRICS_PORT": ""}
    return [
        dataclasses.replace(process, env={**process.env, **shared, "OMNIBUS_METRICS_NAME": process.name})
        for process in processes
    ]


@contextmanager
def metrics_shown(settings: Settings, metrics: Metrics) -> Iterator[None]:
    """Show metrics on the port that the settings name, from a thread, as long as the context lasts; raises PortTaken."""
    if settings.metrics_port is None:
        yield
        return
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server, thread = start_http_server(port, host, metrics.shown)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"port {port} on {host} is taken; choose another with --metrics-port") from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}", param="metrics_host") from error
    where = f"[{host}]" if ":" in host else host
    log.info(LogEvent.SERVER_STARTED, url=f"http://{where}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
