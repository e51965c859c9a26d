"""Options that several commands have. Those that are settings are kept in the context, where `root.load_settings` finds them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from omnibus.cli.root import Wanted

F = TypeVar("F", bound=Callable[..., Any])
NATS_ROLES = ("operator", "orchestrator", "frontdoor", "worker", "supervisor", "producer", "observer")
PIPELINE_FILE = "omnibus.pipeline_file"
"""Key of the path of a command's `--pipeline FILE`, in its context."""
SETTING = "omnibus.settings."
"""Prefix of the keys of settings that options leave in a command's context."""


class _Credentials(click.Path):
    """A path of credentials; the error of one that is missing says where to copy them from."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            advice = (
                "Copy nats.credentials from the state directory of the `omnibus serve` that has the broker; "
                "of a server for production, `omnibus nats credentials` makes them."
            )
            raise click.BadParameter(f"{error.message} {advice}", ctx=ctx, param=param) from error


_FILE, _FOLDER = click.Path(exists=True, path_type=Path), click.Path(file_okay=False, path_type=Path)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in their order."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def setting(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option whose value is the setting of its name; the command does not get it."""
    return click.option(*names, expose_value=False, callback=_note, **attributes)


def _note(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, ()):
        context.meta[f"{SETTING}{parameter.name}"] = value


class PipelineType(click.ParamType[Any]):
    """The name of a deployed pipeline, or a file: it is read before anything is connected to."""

    name = "NAME|FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Wanted:  # noqa: ARG002 click's signature
        from omnibus.pipeline.files import is_path  # noqa: PLC0415 commands import when they run
        from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415

        if not isinstance(value, str) or not is_path(value):
            return value  # type: ignore[no-any-return]
        if ctx is not None:
            ctx.meta[PIPELINE_FILE] = value
        return load_pipeline(value)


state_dir = setting("--state-dir", type=_FOLDER, help="Where an embedded server keeps its data and its address.")
broker = together(
    setting("--nats", "nats_url", metavar="URL", help="NATS server or cluster; by default it is found."),
    setting("--credentials", "nats_credentials", metavar="PATH", type=_Credentials(exists=True, path_type=Path),
            help="The user at NATS: a file, or a folder with a file for each role."),
    setting("--nats-ca", "nats_tls_ca", metavar="PATH", type=_FILE, help="Certificate authority of the NATS server."),
    setting("--nats-cert", "nats_tls_cert", metavar="PATH", type=_FILE, help="Client certificate for NATS."),
    setting("--nats-key", "nats_tls_key", metavar="PATH", type=_FILE, help="Its key."),
    state_dir,
)  # fmt: skip
process = together(
    broker,
    setting("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What is logged on stderr."),
)
allow_module = setting(
    "--allow-module", "allowed_modules", multiple=True, metavar="NAME",
    help="A module, or a setting that has code loaded, which a stage may name though it comes from the broker; may be repeated.",
)  # fmt: skip
metrics = together(
    setting("--metrics-port", type=click.IntRange(0, 65535), metavar="PORT",
            help="Show the metrics of this command's processes there, at /metrics; 0 takes a free port."),
    setting("--metrics-host", metavar="ADDRESS", help="Where that port is; loopback by default."),
)  # fmt: skip
payloads = together(
    setting("--shared-memory", metavar="SIZE", help="Shared memory of each replica for large outputs, 1GiB by default; 0: none."),
    setting("--payload-address", metavar="ADDRESS", help="Where replicas serve large outputs to other hosts, unencrypted."),
)  # fmt: skip
pipeline = click.option(
    "--pipeline",
    "-p",
    type=PipelineType(),
    help="A deployed pipeline, or a file; not needed when only one is deployed.",
)
request_id = click.option(
    "--request-id", "--rid", "request_id", metavar="ID",
    help="The request's id; the same id again attaches to the same request.",
)  # fmt: skip
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
api_keys_file = setting(
    "--api-keys-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The keys to accept, made by `omnibus keys`.",
)
front_door = together(
    setting("--host", metavar="ADDRESS", help="Where the front door listens; loopback by default."),
    setting("--port", type=click.IntRange(0, 65535), help="Its port, 8000 by default; 0 takes a free one."),
    setting(
        "--frontdoors", type=click.IntRange(min=1), metavar="N", help="How many processes answer on it, 1 by default."
    ),
    setting("--served-model-name", metavar="NAME", help="A further name for the pipeline that is served."),
    api_keys_file,
    setting(
        "--allowed-media-domains",
        metavar="LIST",
        help="Hosts whose files it fetches for requests; * for all public ones.",
    ),
    setting("--closed", metavar="LIST", help="Pages that ask for a key, too: metrics,docs,ui."),
    setting("--keep-alive", type=click.IntRange(min=1), metavar="SECONDS", help="How long it keeps idle connections."),
    setting("--max-connections", type=click.IntRange(min=1), metavar="N", help="How many connections it takes."),
    setting("--allowed-origins", metavar="LIST", help="Origins whose pages may call it (CORS); * for all."),
    setting("--allowed-methods", metavar="LIST", help="Methods that those pages may use; by default all."),
    setting("--allowed-headers", metavar="LIST", help="Headers that they may send; by default all."),
    setting("--allow-credentials", is_flag=True, default=None, help="Let those pages send cookies."),
)


def _seconds(name: str, default: float, help: str, *, zero: bool = False) -> Callable[[F], F]:  # noqa: A002 click's word
    kind = click.FloatRange(min=0, min_open=not zero)
    return click.option(name, type=kind, default=default, show_default=True, metavar="SECONDS", help=help)


grace = _seconds("--grace", 30.0, "Time to finish tasks when stopped.", zero=True)
stage_init_timeout = _seconds("--stage-init-timeout", 300.0, "Time for one engine to load.")
init_timeout = _seconds("--init-timeout", 600.0, "Time for everything that is started here to come up.")
restart_timeout = _seconds("--timeout", 600.0, "Time for each replica to finish what it has and be up again.")
stage_overrides = click.option(
    "--stage-overrides", multiple=True, metavar="JSON|STAGE.FIELD=VALUE",
    help="""Change stages, such as '{"1": {"slots": 2}}' or dit.slots=2; may be repeated.""",
)  # fmt: skip
platform = click.option(
    "--platform", type=click.Choice(["cuda", "rocm", "npu", "cpu"]),
    help="Which of the file's platforms is meant, instead of this machine's.",
)  # fmt: skip
log_stats = click.option("--log-stats", is_flag=True, help="Log the load of every replica each ten seconds.")
replicas = click.option(
    "--replicas", type=click.IntRange(min=1), metavar="N",
    help="Replicas of a stage started by this command, instead of the pipeline's number.",
)  # fmt: skip


stage_replicas = together(
    pipeline, stage_overrides, allow_module, payloads, metrics, process, grace, stage_init_timeout, log_stats
)
"""Options of every command that runs replicas of one stage."""


def confirmed(question: str) -> Callable[[F], F]:
    """`--yes`; without it, the question is asked on a terminal before anything else is done."""

    def ask(_context: click.Context, _parameter: click.Parameter, is_sure: bool) -> None:
        if not is_sure and sys.stdin.isatty():
            click.confirm(question, abort=True)

    return click.option("--yes", is_flag=True, help="Do not ask.", callback=ask, expose_value=False)
