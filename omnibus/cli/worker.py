"""`omnibus worker`."""

from __future__ import annotations

from typing import Any

import click

from omnibus.cli import options
from omnibus.cli.vllm_flags import ServingCommand


@click.command("worker", cls=ServingCommand)
@click.option("--stage", required=True, metavar="ID|NAME", help="Which stage.")
@options.replicas
@options.stage_replicas
def command(**flags: Any) -> None:
    """Run replicas of one stage of a deployed pipeline, here: a process each, started again when it dies.

    It may be started before the broker and before the pipeline is deployed, and stopped at any time: SIGTERM or Ctrl-C
    lets replicas finish what they have, a second one kills them.
    """
    from omnibus.cli.launch import WorkerArguments, work  # noqa: PLC0415 commands import when they run

    work(WorkerArguments(**flags))
