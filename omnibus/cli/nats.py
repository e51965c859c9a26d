"""`omnibus nats`: what pipelines need on the broker, and bringing the broker to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from omnibus.cli.broker_command import CommandSession, broker_command
from omnibus.cli.credentials import credentials, revoke

if TYPE_CHECKING:
    from omnibus.broker.connection import Connection
    from omnibus.broker.layout import Change
    from omnibus.pipeline.spec import PipelineSpec

_PIPELINES = click.argument("pipelines", metavar="[PIPELINE]...", nargs=-1)


@click.group("nats")
def command() -> None:
    """Show or apply what the broker must hold: streams, consumers, buckets; and make the users of a server.

    PIPELINE is a deployed one, a file, or a shipped one; without any, all that are deployed.
    """


command.add_command(credentials)
command.add_command(revoke)


@command.command()
@_PIPELINES
@broker_command("layout", pipeline=False)
async def plan(session: CommandSession, pipelines: tuple[str, ...]) -> None:
    """Show what `apply` would change, a line a change. Changes nothing."""
    _show(await _changes(session, pipelines, perform=False), "nothing to change")


@command.command()
@_PIPELINES
@broker_command("layout", pipeline=False)
async def apply(session: CommandSession, pipelines: tuple[str, ...]) -> None:
    """Create and update what is missing or different. Deletes nothing; idempotent."""
    _show(await _changes(session, pipelines, perform=True), "nothing had to change")


def _show(changes: list[Change], otherwise: str) -> None:
    for change in changes:
        click.echo(str(change))
    if not changes:
        click.echo(otherwise)


async def _changes(session: CommandSession, pipelines: tuple[str, ...], *, perform: bool) -> list[Change]:
    from omnibus.broker import layout  # noqa: PLC0415 commands import when they run

    changes: dict[object, Change] = {}  # pipelines share the bucket of pipelines
    for spec in await _specs(session.connection, pipelines):
        described = layout.layout_of(spec, replicas=session.settings.nats_replicas)
        for change in await layout.plan(session.connection, described):
            changes.setdefault((type(change.target), str(change)), change)
    if perform:
        await layout.apply(session.connection, list(changes.values()))
    return list(changes.values())


async def _specs(connection: Connection, pipelines: tuple[str, ...]) -> list[PipelineSpec]:
    from omnibus.errors import PipelineError  # noqa: PLC0415
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415
    from omnibus.registry.deployed_pipelines import list_deployed  # noqa: PLC0415

    deployed = {found.spec.name: found.spec for found in await list_deployed(connection)}
    if not pipelines and not deployed:
        raise PipelineError("no pipeline is deployed; name a file or a shipped pipeline")
    return [deployed.get(name) or load_pipeline(name) for name in pipelines] or list(deployed.values())
