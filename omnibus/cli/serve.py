"""`omnibus serve`."""

from __future__ import annotations

from typing import Any

import click

from omnibus.cli import options
from omnibus.cli.vllm_flags import ServingCommand


def _refuse_headless(_context: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        raise click.UsageError(
            "a process that runs stages beside another one's front door is `omnibus worker --stage STAGE --nats URL`; "
            "to serve everything but HTTP, `omnibus serve PIPELINE --no-frontdoor`"
        )


@click.command("serve", cls=ServingCommand)
@click.argument("pipeline")
@options.front_door
@options.process
@options.setting("--nats-host", metavar="ADDRESS", help="Where the embedded server listens; loopback by default.")
@options.setting("--nats-security", metavar="DIR", type=click.Path(),
                 help="Its users and TLS certificate: `omnibus nats credentials`.")  # fmt: skip
@options.setting("--insecure", "nats_insecure", is_flag=True, default=None,
                 help="Let other machines in without TLS, by password alone.")  # fmt: skip
@options.setting("--nats-port", type=click.IntRange(0, 65535), help="Port of the embedded server; 0 takes a free one.")
@click.option("--stages", metavar="LIST", help="Stages that run here, such as 0,1; by default all.")
@options.replicas
@options.stage_overrides
@options.allow_module
@options.payloads
@options.metrics
@click.option("--lb-policy", multiple=True, metavar="[STAGE=]POLICY",
              help="Who picks replicas: broker, random, round-robin or least-queue-length; may be repeated.")  # fmt: skip
@click.option("--tokenizer", metavar="PATH|NAME", help="The tokenizer of LLM stages that name none.")
@click.option("--async-chunk/--no-async-chunk", default=None,
              help="Have stages read each other while they run where an edge says async_chunk, or nowhere.")  # fmt: skip
@options.platform
@click.option("--no-frontdoor", is_flag=True, help="Without the HTTP server.")
@click.option("--headless", is_flag=True, hidden=True, expose_value=False, callback=_refuse_headless, help="Of vLLM.")
@options.grace
@options.stage_init_timeout
@options.init_timeout
@options.log_stats
def command(**flags: Any) -> None:
    """Serve PIPELINE, a file or the name of a shipped one: broker, orchestrator, front door and stages, supervised.

    An embedded NATS server is started over the state directory, unless one runs there already, or --nats or OMNIBUS_NATS_URL
    names another. Ctrl-C ends everything in order; a second one kills.
    """
    from omnibus.cli.launch import ServeArguments, serve  # noqa: PLC0415 commands import when they run

    serve(ServeArguments(**flags))
