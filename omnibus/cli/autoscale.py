"""`omnibus autoscale`."""

from __future__ import annotations

from typing import Any

import click

from omnibus.cli import options


@click.command("autoscale")
@click.option("--stage", required=True, metavar="ID|NAME", help="Which stage.")
@click.option(
    "--min", "least", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Replicas, at least."
)
@click.option("--max", "most", type=click.IntRange(min=1), required=True, metavar="N", help="Replicas, at most.")
@click.option("--lag", type=click.IntRange(min=1), metavar="N", help="Tasks for each replica; by default its slots.")
@click.option("--cooldown", type=click.FloatRange(min=0), default=60.0, show_default=True, metavar="SECONDS",
              help="For which fewer must be enough before any is stopped.")  # fmt: skip
@click.option("--every", type=click.FloatRange(min=0.1), default=2.0, show_default=True, metavar="SECONDS",
              help="How often it looks.")  # fmt: skip
@click.option(
    "--deployment", metavar="NAME", help="Scale this Deployment of a Kubernetes cluster, in place of processes here."
)
@click.option("--namespace", metavar="NAME", help="Its namespace; by default this pod's own.")
@click.option(
    "--kube-api", metavar="URL", help="The cluster's API, such as that of kubectl proxy; by default this pod's."
)
@options.stage_replicas
def command(**flags: Any) -> None:
    """Run as many replicas of a stage as its queue wants, from --min (0, too) to --max, here or in a Kubernetes cluster.

    It follows the tasks of the stage that wait or are in hand: up at once, and down when fewer were enough for a whole
    cooldown. Replicas that are stopped finish what they have, within --grace. Ctrl-C ends those here as of `omnibus worker`;
    a Deployment stays as it is.
    """
    from omnibus.cli.elastic import ScaleArguments, autoscale  # noqa: PLC0415 commands import when they run

    autoscale(ScaleArguments.of(flags))
