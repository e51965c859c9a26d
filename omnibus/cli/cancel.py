"""`omnibus cancel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.settings import Settings


@click.command("cancel")
@click.argument("rids", metavar="RID...", nargs=-1, required=True)
@options.pipeline
@options.nats
@options.state_dir
def command(rids: tuple[str, ...], pipeline: str | None, nats_url: str | None, state_dir: Path | None) -> int:
    """Cancel requests by id, and say how each has ended, and what its text had come to. Exit code 2 if any is unknown."""
    from omnibus.cli.root import ask, load_settings  # noqa: PLC0415 commands import when they run

    return ask(_cancel(load_settings(nats_url=nats_url, state_dir=state_dir), pipeline, rids))


async def _cancel(settings: Settings, pipeline: str | None, rids: tuple[str, ...]) -> int:
    from omnibus.cli.deployed import find_pipeline  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415
    from omnibus.client.producer import Producer  # noqa: PLC0415
    from omnibus.client.request_events import ABORT  # noqa: PLC0415
    from omnibus.errors import RequestError  # noqa: PLC0415

    unknown = 0
    async with connected(settings, role="cancel") as connection, Producer(connection) as producer:
        name = (await find_pipeline(connection, pipeline)).name
        for rid in rids:
            try:
                result = await producer.cancel(name, rid)
            except RequestError as error:
                unknown += 1
                click.echo(f"{rid}: {error.message}", err=True)
            else:
                click.echo(f"{rid}: {result.state}")
                for output in result.outputs:
                    if output.finish_reason == ABORT:
                        click.echo(output.text)
    return 2 if unknown else 0
