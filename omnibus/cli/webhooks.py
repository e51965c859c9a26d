"""`omnibus webhooks`: the addresses that are called when jobs of callers have ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession


@click.group("webhooks")
def command() -> None:
    """Add, list or remove webhooks: addresses that are called when batches, videos and responses have ended.

    What is sent is signed as the Standard Webhooks have it, and sent again until its address takes it, for three days.
    """


@command.command()
@click.argument("url")
@click.option(
    "--key", metavar="NAME", help="The API key whose jobs are meant; without it those of callers without keys."
)
@click.option("--events", metavar="LIST", default="", help="Types of events, with commas; by default all.")
@options.api_keys_file
@broker_command("deploy", pipeline=False)
async def add(session: CommandSession, url: str, key: str | None, events: str) -> None:
    """Have URL called, and print the secret that signs what is sent. It cannot be shown again."""
    from omnibus.webhooks.webhook_store import WebhookStore  # noqa: PLC0415 commands import when they run

    tenant = None if key is None else _tenant_of(key)
    wanted = [name.strip() for name in events.split(",") if name.strip()]
    endpoint = await WebhookStore(session.connection).add(tenant, url, wanted)
    click.echo(endpoint.secret)
    click.echo(f"{endpoint.id} calls {url}; the secret is what the receiver checks signatures with", err=True)


@command.command("list")
@options.api_keys_file
@options.as_json
@broker_command("deploy", pipeline=False)
async def list_webhooks(session: CommandSession, *, as_json: bool) -> None:
    """List the addresses, the keys that they are for, and the events that they want."""
    from omnibus.cli.tables import clock, make_table, show  # noqa: PLC0415 commands import when they run
    from omnibus.webhooks.webhook_store import WebhookStore  # noqa: PLC0415

    found, names = await WebhookStore(session.connection).of_all(), _key_names()
    if as_json:
        rows = [
            {"id": one.id, "url": one.url, "tenant": one.tenant, "events": list(one.events), "created": one.created}
            for one in found
        ]
        click.echo(json.dumps(rows))
        return
    cells = [
        (one.id, one.url, names.get(one.tenant or "", one.tenant), ", ".join(one.events) or "all", clock(one.created))
        for one in found
    ]
    show(make_table(("webhook", "address", "key", "events", "since"), cells))


@command.command()
@click.argument("webhook", metavar="ID|URL")
@broker_command("deploy", pipeline=False)
async def remove(session: CommandSession, webhook: str) -> None:
    """Remove a webhook by its id, or all that call an address."""
    from omnibus.webhooks.webhook_store import WebhookStore  # noqa: PLC0415 commands import when they run

    for one in await WebhookStore(session.connection).remove(webhook):
        click.echo(f"removed {one.id}, which called {one.url}")


def _tenant_of(name: str) -> str:
    """The tenant of a key; raises ConfigError where there is no such key."""
    from omnibus.errors import ConfigError  # noqa: PLC0415 commands import when they run

    found = next((tenant for tenant, known in _key_names().items() if known == name), None)
    if found is None:
        raise ConfigError(f"there is no key {name!r}: `omnibus keys list` lists them", param="key")
    return found


def _key_names() -> dict[str, str]:
    """The names of the keys in the file, by their tenants."""
    from omnibus.cli.root import load_settings  # noqa: PLC0415 commands import when they run
    from omnibus.frontdoor.api_keys import KeyFile  # noqa: PLC0415

    try:
        return {key.tenant: key.name for key in KeyFile(load_settings().keys_path).read()}
    except FileNotFoundError:
        return {}
