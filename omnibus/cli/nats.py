"""`omnibus nats`: what pipelines need on the broker, and bringing the broker to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.broker.connection import Connection
    from omnibus.broker.layout import Change
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.settings import Settings

_PIPELINES = click.argument("pipelines", metavar="[PIPELINE]...", nargs=-1)


@click.group("nats")
def command() -> None:
    """Show or apply what the broker must hold: streams, consumers, buckets.

    PIPELINE is a deployed one, a file, or a shipped one; without any, all that are deployed.
    """


@command.command()
@_PIPELINES
@options.nats
@options.state_dir
def plan(pipelines: tuple[str, ...], nats_url: str | None, state_dir: Path | None) -> None:
    """Show what `apply` would change, a line a change. Changes nothing."""
    _show(_run(pipelines, nats_url, state_dir, perform=False), "nothing to change")


@command.command()
@_PIPELINES
@options.nats
@options.state_dir
def apply(pipelines: tuple[str, ...], nats_url: str | None, state_dir: Path | None) -> None:
    """Create and update what is missing or different. Deletes nothing; idempotent."""
    _show(_run(pipelines, nats_url, state_dir, perform=True), "nothing had to change")


def _show(changes: list[Change], otherwise: str) -> None:
    for change in changes:
        click.echo(str(change))
    if not changes:
        click.echo(otherwise)


def _run(pipelines: tuple[str, ...], nats_url: str | None, state_dir: Path | None, *, perform: bool) -> list[Change]:
    from omnibus.cli.root import load_settings, run  # noqa: PLC0415 commands import when they run
    from omnibus.observability.logging import configure_logging  # noqa: PLC0415

    settings = load_settings(nats_url=nats_url, state_dir=state_dir)
    configure_logging("warning", settings.log_format)
    return run(_changes(settings, pipelines, perform=perform))


async def _changes(settings: Settings, pipelines: tuple[str, ...], *, perform: bool) -> list[Change]:
    from omnibus.broker import layout  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415

    async with connected(settings, role="layout") as connection:
        changes: dict[object, Change] = {}  # pipelines share the bucket of pipelines
        for spec in await _specs(connection, pipelines):
            described = layout.layout_of(spec, replicas=settings.nats_replicas)
            for change in await layout.plan(connection, described):
                changes.setdefault((type(change.target), str(change)), change)
        if perform:
            await layout.apply(connection, list(changes.values()))
        return list(changes.values())


async def _specs(connection: Connection, pipelines: tuple[str, ...]) -> list[PipelineSpec]:
    from omnibus.errors import PipelineError  # noqa: PLC0415
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415
    from omnibus.registry.deployed_pipelines import list_deployed  # noqa: PLC0415

    deployed = {found.spec.name: found.spec for found in await list_deployed(connection)}
    if not pipelines and not deployed:
        raise PipelineError("no pipeline is deployed; name a file or a shipped pipeline")
    return [deployed.get(name) or load_pipeline(name) for name in pipelines] or list(deployed.values())
