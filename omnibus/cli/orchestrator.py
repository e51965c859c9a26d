"""`omnibus orchestrator`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.cli.root import Wanted
    from omnibus.settings import Settings


@click.command("orchestrator")
@options.pipeline
@options.metrics
@options.process
def command(*, pipeline: Wanted) -> None:
    """Run an orchestrator of a deployed pipeline. Any number of them may run; it waits for the deployment."""
    from omnibus.cli.root import load_settings, run_until_stopped  # noqa: PLC0415

    settings = load_settings()
    run_until_stopped(settings, _orchestrate(settings, pipeline))


async def _orchestrate(settings: Settings, pipeline: Wanted) -> None:
    from omnibus.broker.discovery import discover  # noqa: PLC0415 commands import when they run
    from omnibus.cli.command_health import CommandHealth, broker_check  # noqa: PLC0415
    from omnibus.cli.metrics_port import metrics_shown  # noqa: PLC0415
    from omnibus.cli.root import START_WAIT, connected, find_pipeline  # noqa: PLC0415
    from omnibus.observability.metrics import share_metrics  # noqa: PLC0415
    from omnibus.observability.tracing import open_tracing  # noqa: PLC0415
    from omnibus.orchestrator.deployed import DeployedOrchestrator  # noqa: PLC0415
    from omnibus.orchestrator.disconnects import SystemAccount  # noqa: PLC0415
    from omnibus.orchestrator.queue_gauges import QueueGauges  # noqa: PLC0415

    share_metrics(settings.metrics_dir, settings.metrics_name)
    endpoint, protocol = settings.tracing
    async with AsyncExitStack() as stack:
        tracing = stack.enter_context(closing(open_tracing(endpoint, "omnibus-orchestrator", protocol=protocol)))
        opening = connected(settings, role="orchestrator", wait=START_WAIT, tracing=tracing)
        connection = await stack.enter_async_context(opening)
        spec = await find_pipeline(connection, pipeline, wait=START_WAIT)
        found, system = discover(settings), None
        if found.system_url is not None:
            system = SystemAccount(url=found.system_url, access=found.system_access, account=settings.nats_account)
        health = CommandHealth()
        health.follow(broker_check(connection))
        with metrics_shown(settings, connection.metrics, health):
            measuring = asyncio.create_task(QueueGauges(connection, spec.name).run(), name="queue-gauges")
            try:
                await DeployedOrchestrator(connection, spec, system=system).run()
            finally:
                measuring.cancel()
