"""Metrics of a command with several processes: the folder in which they meet, and the port on which Prometheus finds them.

The port answers `/health`, too, for the probes of whatever runs the command.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

from omnibus.cli.command_health import CommandHealth
from omnibus.errors import ConfigError, PortTaken
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics, share_metrics
from omnibus.settings import Settings
from omnibus.workers.supervisor import ProcessSpec

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

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
def metrics_shown(settings: Settings, metrics: Metrics, health: CommandHealth) -> Iterator[None]:
    """Show metrics and health on the port that the settings name, as long as the context lasts; raises PortTaken."""
    if settings.metrics_port is None:
        yield
        return
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server = make_server(host, port, _pages(metrics, health), _server_class(host, port), handler_class=_Quiet)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"port {port} on {host} is taken; choose another with --metrics-port") from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}", param="metrics_host") from error
    where = f"[{host}]" if ":" in host else host
    log.info(LogEvent.SERVER_STARTED, url=f"http://{where}:{server.server_port}/metrics")
    thread = threading.Thread(target=server.serve_forever, name="metrics-port", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name is the library's
        """Log nothing: probes and scrapes come all the time."""


def _server_class(host: str, port: int) -> type[ThreadingWSGIServer]:
    """A server for the family of the address."""

    class Server(ThreadingWSGIServer):
        address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]

    return Server


def _pages(metrics: Metrics, health: CommandHealth) -> WSGIApplication:
    """`/health`, and metrics at every other path."""
    shown: WSGIApplication = make_wsgi_app(metrics.shown)

    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health":
            return shown(environ, start_response)
        well, body = health.answer()
        start_response(
            "200 OK" if well else "503 Service Unavailable",
            [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
        )
        return [body]

    return page
