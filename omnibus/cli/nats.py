"""`omnibus nats`: what pipelines need on the broker, and bringing the broker to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command
from omnibus.cli.credentials import credentials, revoke

if TYPE_CHECKING:
    from omnibus.broker.layout import Change
    from omnibus.cli.root import CommandSession
    from omnibus.pipeline.spec import PipelineSpec

_PIPELINES = click.argument("pipelines", type=options.PipelineType(), metavar="[PIPELINE]...", nargs=-1)


@click.group("nats")
def command() -> None:
    """Show or apply what the broker must hold: streams, consumers, buckets; and make the users of a server.

    PIPELINE is a deployed one, a file, or a shipped one; without any, all that are deployed.
    """


command.add_command(credentials)
command.add_command(revoke)


@command.command()
@_PIPELINES
@options.as_json
@broker_command("layout", pipeline=False)
async def plan(session: CommandSession, pipelines: tuple[str | PipelineSpec, ...], *, as_json: bool) -> None:
    """Show what `apply` would change, a line a change. Changes nothing. --json prints an array."""
    if as_json:
        changes = [
            {
                "action": one.action,
                "operation": one.target.operation(one.action.upper()),
                "differences": one.differences,
            }
            for one in await _changes(session, pipelines)
        ]
        click.echo(json.dumps(changes))
        return
    click.echo("\n".join(map(str, await _changes(session, pipelines))) or "nothing to change")


@command.command()
@_PIPELINES
@broker_command("layout", pipeline=False)
async def apply(session: CommandSession, pipelines: tuple[str | PipelineSpec, ...]) -> None:
    """Create and update what is missing or different. Deletes nothing; idempotent."""
    from omnibus.broker import layout  # noqa: PLC0415 commands import when they run

    changes = await _changes(session, pipelines)
    await layout.apply(session.connection, changes)
    click.echo("\n".join(map(str, changes)) or "nothing had to change")


async def _changes(session: CommandSession, pipelines: tuple[str | PipelineSpec, ...]) -> list[Change]:
    from omnibus.broker import layout  # noqa: PLC0415
    from omnibus.errors import PipelineError  # noqa: PLC0415
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415
    from omnibus.registry.deployed_pipelines import list_deployed  # noqa: PLC0415

    deployed = {found.spec.name: found.spec for found in await list_deployed(session.connection)}
    if not pipelines and not deployed:
        raise PipelineError("no pipeline is deployed; name a file or a shipped pipeline")
    named = [deployed.get(one) or load_pipeline(one) if isinstance(one, str) else one for one in pipelines]
    changes: dict[object, Change] = {}  # pipelines share the bucket of pipelines
    for spec in named or deployed.values():
        described = layout.layout_of(spec, replicas=session.settings.nats_replicas)
        for change in await layout.plan(session.connection, described):
            changes.setdefault((type(change.target), str(change)), change)
    return list(changes.values())
