"""The process of one replica: `python -m omnibus.workers.replica_main --pipeline P --stage N`. Started by a supervisor."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import os
import secrets
import signal
import sys
from collections.abc import Coroutine
from contextlib import closing
from typing import Any, NoReturn

import uvloop

import omnibus.observability.lean_structlog  # noqa: F401 before anything imports structlog
from omnibus.broker.connection import Connection, connect
from omnibus.broker.discovery import discover
from omnibus.errors import ConfigError, OmnibusError
from omnibus.garbage import settle_garbage
from omnibus.lineage import die_with_parent
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import configure_logging, get_logger
from omnibus.observability.metrics import share_metrics
from omnibus.observability.tracing import open_tracing
from omnibus.payloads.transports import Transports
from omnibus.pipeline.allowed_code import AllowedCode
from omnibus.pipeline.overrides import override_stages
from omnibus.pipeline.spec import PayloadRule
from omnibus.registry.deployed_pipelines import load_deployed
from omnibus.settings import Settings
from omnibus.workers.initialisation.watchdog import Watchdog
from omnibus.workers.interpreters import check_version
from omnibus.workers.replica import Replica, ReplicaOptions
from omnibus.workers.supervisor import FATAL_EXIT_CODE, INSTANCE_VARIABLE, RESTART_EXIT_CODE

STUCK_AFTER = 5.0
"""Seconds beyond every deadline of the start after which only a stuck event loop can be the reason."""

log = get_logger(__name__)


def main() -> None:
    """Exit codes: 0 left in order; 1 died, and may be started again; 75 wants to be; 78 cannot start as it is configured.

    SIGTERM or SIGINT drains; a second one requeues the running tasks at once.
    """
    die_with_parent()
    try:
        check_version()
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(FATAL_EXIT_CODE)
    arguments = _parser().parse_args()
    settings = Settings()
    configure_logging(settings.log_level, settings.log_format, for_good=True)
    share_metrics(settings.metrics_dir, settings.metrics_name)  # before vLLM makes its own
    uvloop.run(_end_with(_run(arguments, settings), arguments.stage))


async def _end_with(replica: Coroutine[Any, Any, bool], stage: str) -> NoReturn:
    """End the process with the replica, at once: an engine's thread that never comes back would hold up any other end."""
    status = 1
    try:
        status = RESTART_EXIT_CODE if await replica else 0
    except OmnibusError as error:
        log.error(LogEvent.REPLICA_DOWN, stage=stage, code=error.code, error=error.message)  # noqa: TRY400 it says all
        status = FATAL_EXIT_CODE if isinstance(error, ConfigError) else 1
    except BaseException:
        log.exception(LogEvent.REPLICA_DOWN, stage=stage)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


async def _run(arguments: argparse.Namespace, settings: Settings) -> bool:
    instance = os.environ.get(INSTANCE_VARIABLE) or f"replica-{secrets.token_hex(4)}"
    found = discover(settings)
    endpoint, protocol = settings.tracing
    with closing(open_tracing(endpoint, "omnibus-worker", protocol=protocol)) as tracing:
        async with connect(
            found.url, name=instance, role="worker", deadline=30.0, access=found.access, stage=arguments.stage
        ) as conn:
            conn.tracing = tracing
            return await _serve(conn, arguments, settings, instance)


async def _serve(conn: Connection, arguments: argparse.Namespace, settings: Settings, instance: str) -> bool:
    """Whether it wants to be started again."""
    spec = override_stages(await load_deployed(conn, arguments.pipeline), arguments.override)
    stage, start_timeout = spec.stage(arguments.stage), arguments.start_timeout
    AllowedCode(frozenset(settings.allowed_modules)).check(stage)
    asks_for_peer = any(edge.source == stage.stage_id and edge.payload is PayloadRule.PEER for edge in spec.edges)
    watchdog = Watchdog(f"stage {stage.name!r}", FATAL_EXIT_CODE)

    def loaded() -> None:
        watchdog.rest()
        settle_garbage()

    options = ReplicaOptions(
        instance=instance,
        devices=arguments.devices,
        grace=arguments.grace,
        start_timeout=start_timeout,
        supervised=INSTANCE_VARIABLE in os.environ,
        on_loaded=loaded,
    )
    watchdog.expect("importing the engine", start_timeout)
    with Transports.open(settings, spec.name, asks_for_peer=asks_for_peer) as transports:
        replica = Replica(conn, spec, stage, dataclasses.replace(options, transports=transports))
        watchdog.expect("the engine", 2 * start_timeout + STUCK_AFTER)
        _leave_on_signals(replica)
        await replica.run()
    return replica.comes_back


def _leave_on_signals(replica: Replica) -> None:
    loop, stops = asyncio.get_running_loop(), itertools.count()

    def stop() -> None:
        (replica.hurry if next(stops) else replica.drain)()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omnibus-replica", description="Run one replica of a stage.")
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--stage", required=True, help="id or name")
    parser.add_argument("--devices", default="", help="what the replica sees, for its record")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds to finish tasks after SIGTERM")
    parser.add_argument("--start-timeout", type=float, default=300.0, help="seconds that the engine may take to load")
    parser.add_argument(
        "--override", action="append", default=[], help="a change of the stage, as in --stage-overrides"
    )
    return parser


if __name__ == "__main__":
    main()
