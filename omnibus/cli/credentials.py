"""`omnibus nats credentials` and `omnibus nats revoke`: the users of a server for production, one a process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options
from omnibus.wire.names import check_name

if TYPE_CHECKING:
    from omnibus.pipeline.spec import PipelineSpec

_User = dict[str, Any]
"""Arguments of `CredentialsFolder.add` for a user to be made."""
_FOLDER = click.option(
    "--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default="nats-credentials", show_default=True,
    help="The folder with everything; ca.key in it stays where it is made.",
)  # fmt: skip


@click.command("credentials")
@click.argument("role", metavar="ROLE", type=click.Choice(("all", *options.NATS_ROLES, "disconnects")))
@click.option("--pipeline", "-p", "pipelines", multiple=True, metavar="FILE|NAME", help="Which pipelines it is for.")
@click.option("--stage", "stages", multiple=True, metavar="ID|NAME", help="Stages of a worker or a supervisor.")
@click.option("--token", metavar="TOKEN", help="What a producer listens to, as Omni-Reply; its name by default.")
@click.option("--name", metavar="NAME", help="The user's name, and that of its files; made of the role by default.")
@_FOLDER
@click.option("--host", "hosts", multiple=True, metavar="NAME|ADDRESS", help="Under which clients reach the server.")
@click.option(
    "--ca", type=click.Path(dir_okay=False, path_type=Path), help="Your certificate authority, else one is made."
)
@click.option("--ca-key", type=click.Path(dir_okay=False, path_type=Path), help="Its key.")
def credentials(role: str, pipelines: tuple[str, ...], folder: Path, **given: Any) -> None:
    """Make a user for ROLE. It gets an nkey, a client certificate, and permissions in the server's configuration.

    `all` makes one for each role, and a worker and a supervisor for each stage. A user of the same name keeps its key and gets
    the permissions of now, such as after a change of the pipeline. Needs no server; a running one takes users over with
    `nats-server --signal reload`.
    """
    from omnibus.broker.credentials_folder import CredentialsFolder  # noqa: PLC0415 commands import when they run
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415

    if not pipelines:
        raise click.UsageError("name at least one --pipeline")
    made = CredentialsFolder(folder)
    specs = [load_pipeline(one) for one in pipelines]
    authority = made.prepare(given["hosts"], given["ca"], given["ca_key"])
    for user in _all(specs) if role == "all" else [_one(role, specs, given["stages"], given["token"], given["name"])]:
        click.echo(str(made.add(authority, **user)))
    click.echo(f"the server: nats-server -c {folder / 'production.conf'}")
    host = given["hosts"][0] if given["hosts"] else "HOST"
    host = f"[{host}]" if ":" in host else host
    click.echo(
        f"the others: OMNIBUS_NATS_URL=tls://{host}:4222 OMNIBUS_NATS_CREDENTIALS={folder}, or a copy of their own files"
    )


@click.command("revoke")
@click.argument("name")
@_FOLDER
def revoke(name: str, folder: Path) -> None:
    """Withdraw a user. It leaves the server's configuration, and is cut off when the server reloads."""
    from omnibus.broker.credentials_folder import CredentialsFolder  # noqa: PLC0415

    CredentialsFolder(folder).revoke(name)
    click.echo(f"{name} is out: reload the server, nats-server --signal reload")


def _one(
    role: str, specs: Sequence[PipelineSpec], stages: tuple[str, ...], token: str | None, name: str | None
) -> _User:
    from omnibus.broker.roles import NatsRole  # noqa: PLC0415

    per_stage = role in ("worker", "supervisor")
    if per_stage != bool(stages):
        raise click.UsageError("--stage is for workers and supervisors, and they need at least one")
    if per_stage and len(specs) != 1:
        raise click.UsageError(f"a {role} is of one pipeline")
    if token is not None and role != "producer":
        raise click.UsageError("--token is for producers")
    ids = sorted({specs[0].stage(ref).stage_id for ref in stages}) if per_stage else []
    called = check_name(name or "-".join([role, *(map(str, ids))]), "name")
    user = _User(role=NatsRole(role), specs=specs, name=called, stages=ids)
    return {**user, "token": check_name(token or called, "token")} if role == "producer" else user


def _all(specs: Sequence[PipelineSpec]) -> Iterator[_User]:
    from omnibus.broker.roles import NatsRole  # noqa: PLC0415

    for role in NatsRole:
        if role not in (NatsRole.WORKER, NatsRole.SUPERVISOR):
            yield _User(role=role, specs=specs, name=role.value, token=role.value if role is NatsRole.PRODUCER else "")
            continue
        for spec in specs:
            for stage in spec.stages:
                prefix = role.value if len(specs) == 1 else f"{role.value}-{spec.name}"
                yield _User(role=role, specs=[spec], name=f"{prefix}-{stage.stage_id}", stages=[stage.stage_id])
