"""`omnibus keys`: the API keys that the front door accepts."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.frontdoor.api_keys import KeyFile

_NAME = click.argument("name")


@click.group("keys")
def command() -> None:
    """Add, list or revoke the API keys that front doors accept.

    The file holds hashes alone; running front doors notice a change within a second. Once it exists, every caller needs a key.
    """


@command.command()
@_NAME
@click.option("--role", type=click.Choice(["user", "admin"]), default="user", show_default=True, help="Its rights.")
@click.option("--keep", type=click.FloatRange(min=60), metavar="SECONDS", help="Keep what it stores for no longer.")
@options.api_keys_file
@options.state_dir
def add(name: str, role: str, keep: float | None) -> None:
    """Make a key called NAME and print it. It cannot be shown again."""
    from omnibus.frontdoor.api_keys import Role  # noqa: PLC0415 commands import when they run

    file = _file()
    click.echo(file.add(name, Role(role), keep))
    click.echo(
        f"front doors that read {file.path} take it within a second, running ones too; with it every caller needs a key, "
        "as Authorization: Bearer KEY",
        err=True,
    )


@command.command("list")
@options.api_keys_file
@options.state_dir
@options.as_json
def list_keys(*, as_json: bool) -> None:
    """List the names of the keys, their roles, and when they were made. --json prints an array."""
    file = _file()
    try:
        keys = file.read()
    except FileNotFoundError:
        click.echo("[]" if as_json else f"no keys: {file.path} does not exist")
        return
    if as_json:
        click.echo(json.dumps([{"name": one.name, "role": one.role, "created": one.created} for one in keys]))
        return
    for key in keys:
        click.echo(f"{key.name}\t{key.role}\t{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(key.created))}")
    if not keys:
        click.echo("no keys: every request is refused")


@command.command()
@_NAME
@options.api_keys_file
@options.state_dir
def revoke(name: str) -> None:
    """Remove the key called NAME."""
    file = _file()
    file.revoke(name)
    click.echo(f"revoked {name}")
    if not file.read():
        click.echo(
            f"no key is left: every request is refused; to ask for none, remove {file.path} and restart front doors",
            err=True,
        )


def _file() -> KeyFile:
    from omnibus.cli.root import load_settings  # noqa: PLC0415 commands import when they run
    from omnibus.frontdoor.api_keys import KeyFile  # noqa: PLC0415

    return KeyFile(load_settings().keys_path)
