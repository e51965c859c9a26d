"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

nats = click.option("--nats", "nats_url", metavar="URL", help="NATS server or cluster; by default it is found.")
state_dir = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where an embedded server keeps its data and its address.",
)
pipeline = click.option(
    "--pipeline",
    "-p",
    metavar="NAME|FILE",
    help="A deployed pipeline, or a file; not needed when only one is deployed.",
)
log_level = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What is logged on stderr."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
