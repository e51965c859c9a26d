"""Options that several commands have."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
SETTING = "omnibus.settings."
"""Prefix of the keys of settings that options leave in a command's context."""

_nats_url = click.option("--nats", "nats_url", metavar="URL", help="NATS server or cluster; by default it is found.")
_PROOFS = (
    ("--credentials", "nats_credentials", "The user at NATS: a file, or a folder with a file for each role."),
    ("--nats-ca", "nats_tls_ca", "Certificate authority of the NATS server."),
    ("--nats-cert", "nats_tls_cert", "Client certificate for NATS."),
    ("--nats-key", "nats_tls_key", "Its key."),
)


def nats(command: F) -> F:
    """Where the broker is, and who this is to it; of the latter `root.load_settings` knows by itself."""
    for flag, name, text in reversed(_PROOFS):
        option = click.option(
            flag, name, metavar="PATH", type=click.Path(path_type=Path), help=text, expose_value=False, callback=_note
        )
        command = option(command)
    return _nats_url(command)


def _note(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.meta[f"{SETTING}{parameter.name}"] = value


allow_module = click.option(
    "--allow-module",
    multiple=True,
    metavar="NAME",
    help="A module, or a setting that has code loaded, which a stage may name though it comes from the broker; may be repeated.",
)
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
request_id = click.option(
    "--request-id",
    "--rid",
    "request_id",
    metavar="ID",
    help="The request's id; the same id again attaches to the same request.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
api_keys_file = click.option(
    "--api-keys-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The keys to accept, made by `omnibus keys`.",
)
_FRONT_DOOR = (
    click.option("--host", metavar="ADDRESS", help="Where the front door listens; loopback by default."),
    click.option("--port", type=click.IntRange(0, 65535), help="Its port, 8000 by default; 0 takes a free one."),
    api_keys_file,
    click.option("--closed", metavar="LIST", help="Pages that ask for a key, too: metrics,docs."),
    click.option(
        "--keep-alive", type=click.IntRange(min=1), metavar="SECONDS", help="How long it keeps idle connections."
    ),
    click.option("--max-connections", type=click.IntRange(min=1), metavar="N", help="How many connections it takes."),
    click.option("--allowed-origins", metavar="LIST", help="Origins whose pages may call it (CORS); * for all."),
    click.option("--allowed-methods", metavar="LIST", help="Methods that those pages may use; by default all."),
    click.option("--allowed-headers", metavar="LIST", help="Headers that they may send; by default all."),
    click.option("--allow-credentials", is_flag=True, default=None, help="Let those pages send cookies."),
)


def front_door(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the front door, each named as its setting."""
    for option in reversed(_FRONT_DOOR):
        command = option(command)
    return command


grace = click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to finish tasks when stopped.",
)
stage_init_timeout = click.option(
    "--stage-init-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for one engine to load.",
)
init_timeout = click.option(
    "--init-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for everything that is started here to come up.",
)
stage_overrides = click.option(
    "--stage-overrides",
    multiple=True,
    metavar="JSON|STAGE.FIELD=VALUE",
    help="""Change stages, such as '{"1": {"slots": 2}}' or dit.slots=2; may be repeated.""",
)
platform = click.option(
    "--platform",
    type=click.Choice(["cuda", "rocm", "npu", "cpu"]),
    help="Which of the file's platforms is meant, instead of this machine's.",
)
log_stats = click.option("--log-stats", is_flag=True, help="Log the load of every replica each ten seconds.")
replicas = click.option(
    "--replicas",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replicas of a stage started by this command, instead of the pipeline's number.",
)


def confirmed(question: str) -> Callable[[F], F]:
    """`--yes`; without it, the question is asked on a terminal before anything else is done."""

    def ask(_context: click.Context, _parameter: click.Parameter, is_sure: bool) -> None:
        if not is_sure and sys.stdin.isatty():
            click.confirm(question, abort=True)

    return click.option("--yes", is_flag=True, help="Do not ask.", callback=ask, expose_value=False)
