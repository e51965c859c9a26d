"""`omnibus frontdoor`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.cli.root import Wanted
    from omnibus.settings import Settings


@click.command("frontdoor")
@options.front_door
@options.pipeline
@options.process
def command(*, pipeline: Wanted) -> None:
    """Run the HTTP server for every pipeline that is deployed. Any number of them may run.

    --frontdoors N starts N of them on one port, and each again when it dies. --served-model-name is a further name for the
    pipeline that --pipeline names.
    """
    from omnibus.cli.root import load_settings, run_until_stopped  # noqa: PLC0415

    settings = load_settings()
    if settings.frontdoors == 1:
        run_until_stopped(settings, _serve(settings, pipeline))
        return
    from omnibus.cli.frontdoor_processes import serve_several  # noqa: PLC0415

    named = click.get_current_context().meta.get(options.PIPELINE_FILE, pipeline)
    serve_several(settings, *(() if named is None else ("--pipeline", named)))


async def _serve(settings: Settings, pipeline: Wanted) -> None:
    from omnibus.cli.root import START_WAIT, connected, find_pipeline  # noqa: PLC0415 commands import when they run
    from omnibus.client.cluster_view import ClusterView  # noqa: PLC0415
    from omnibus.client.producer import Producer  # noqa: PLC0415
    from omnibus.files.file_upkeep import FileUpkeep  # noqa: PLC0415
    from omnibus.frontdoor.app import create_app  # noqa: PLC0415
    from omnibus.frontdoor.batching.batch_runner import BatchRunner  # noqa: PLC0415
    from omnibus.frontdoor.context import Options  # noqa: PLC0415
    from omnibus.frontdoor.http_connection import Limits  # noqa: PLC0415
    from omnibus.frontdoor.outbound.addresses import AddressRule  # noqa: PLC0415
    from omnibus.frontdoor.outbound.webhook_sender import WebhookSender  # noqa: PLC0415
    from omnibus.frontdoor.responses.response_runner import ResponseRunner  # noqa: PLC0415
    from omnibus.frontdoor.server import HttpServer  # noqa: PLC0415
    from omnibus.frontdoor.video_jobs.video_runner import VideoRunner  # noqa: PLC0415
    from omnibus.observability.metrics import share_metrics  # noqa: PLC0415
    from omnibus.observability.tracing import open_tracing  # noqa: PLC0415
    from omnibus.payloads.transports import Transports  # noqa: PLC0415

    share_metrics(settings.metrics_dir, settings.metrics_name)
    endpoint, protocol = settings.tracing
    with closing(open_tracing(endpoint, "omnibus-frontdoor", protocol=protocol)) as tracing:
        async with (
            connected(settings, role="frontdoor", wait=START_WAIT, tracing=tracing) as connection,
            Producer(connection, Transports.of(settings)) as producer,
            ClusterView(connection) as cluster,
        ):
            aliases = {}
            if settings.served_model_name is not None:
                spec = await find_pipeline(connection, pipeline, wait=START_WAIT)
                aliases = {settings.served_model_name: spec.name}
            app = create_app(
                producer, cluster, replicas=cluster.replicas, connected=lambda: connection.connected,
                metrics=connection.metrics, options=Options.of(settings, aliases), tracing=tracing,
            )  # fmt: skip
            limits = Limits(keep_alive=settings.keep_alive, max_connections=settings.max_connections)
            server = HttpServer(
                app, host=settings.host, port=settings.port, share_port=settings.share_port, limits=limits
            )  # fmt: skip
            context = app.state.context
            upkeep = FileUpkeep(connection, context.storage)
            sender = WebhookSender(connection, AddressRule.of(settings.allowed_networks))
            jobs = (BatchRunner(app), VideoRunner(context), ResponseRunner(context))
            async with server, context.feed, jobs[0], jobs[1], jobs[2], sender, upkeep:
                await server.wait()
