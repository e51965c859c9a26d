"""`omnibus version`."""

from __future__ import annotations

import json
from importlib.metadata import version

import click

from omnibus.cli import options


@click.command("version")
@options.as_json
def command(*, as_json: bool) -> None:
    """Print the version."""
    found = version("omnibus")
    click.echo(json.dumps({"omnibus": found}) if as_json else f"omnibus {found}")
