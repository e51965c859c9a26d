"""The `omnibus` command. A command is a module of this folder, imported only when it runs or shows its own help."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import click

from omnibus.cli.streams import BROKEN_PIPE_EXIT_CODE, OutputLost, flush_streams, prepare_streams


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a command is, and its line in `omnibus --help`."""

    place: str
    """Its module, and the command's name there when that is not `command`."""
    help: str
    section: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, name = self.place.partition(":")
        command: click.Command = getattr(importlib.import_module(f"omnibus.cli.{module}"), name or "command")
        return command


_SERVE, _ASK, _OPERATE = "Serve", "Ask", "Operate"
# Invariant: the line is written here, not taken from the command, so that `omnibus --help` imports nothing but click.
COMMANDS = {
    "demo": _Entry("demo", "See it work: one sentence through omni-tiny.", _SERVE),
    "serve": _Entry("serve", "Run a whole pipeline on this machine.", _SERVE),
    "up": _Entry("serve", "Another name for serve. Ctrl-C is down.", _SERVE),
    "worker": _Entry("worker", "Run replicas of one stage.", _SERVE),
    "autoscale": _Entry("autoscale", "Run as many replicas of a stage as its queue wants.", _SERVE),
    "orchestrator": _Entry("orchestrator", "Run an orchestrator.", _SERVE),
    "frontdoor": _Entry("frontdoor", "Run the HTTP server.", _SERVE),
    "submit": _Entry("submit", "Send a request: stream its text, save its image and audio.", _ASK),
    "chat": _Entry("conversation", "Talk with a pipeline, turn by turn.", _ASK),
    "cancel": _Entry("requests:cancel", "Cancel requests by id.", _ASK),
    "status": _Entry("status", "Show pipelines, stages, replicas and queues, or one request.", _OPERATE),
    "top": _Entry("top", "Show live what stages and replicas do.", _OPERATE),
    "queue": _Entry("queue", "Show the queue of each lane of each stage.", _OPERATE),
    "replicas": _Entry("replicas", "List, drain, resume or restart single replicas.", _OPERATE),
    "requests": _Entry("request_table", "List requests by state, stage, tenant or age.", _OPERATE),
    "trace": _Entry("trace", "Show when each stage of a request waited and ran.", _OPERATE),
    "restart": _Entry("restart", "Restart the replicas of a stage, one after the other.", _OPERATE),
    "dead": _Entry("requests:dead", "List, show, retry or drop requests whose attempts were used up.", _OPERATE),
    "pipeline": _Entry("pipeline", "Show, validate, import, deploy, list or delete pipelines.", _OPERATE),
    "keys": _Entry("keys", "Add, list or revoke the API keys of the front door.", _OPERATE),
    "webhooks": _Entry("webhooks", "Add, list or remove addresses that are called when jobs have ended.", _OPERATE),
    "doctor": _Entry("doctor", "Examine the connection to NATS, and what its credentials permit.", _OPERATE),
    "bench": _Entry("bench", "Send a small load to a front door, and show what its callers saw.", _OPERATE),
    "collect-env": _Entry("collect_env", "Print what a report of a bug should tell of this machine.", _OPERATE),
    "nats": _Entry("nats", "Show or apply what the broker must hold.", _OPERATE),
    "version": _Entry("version", "Print the version.", _OPERATE),
}
_EPILOG = """Completion in the shell: eval "$(_OMNIBUS_COMPLETE=bash_source omnibus)", with zsh_source or fish_source in
theirs."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 click's signature
        entry = COMMANDS.get(cmd_name)
        return entry.load() if entry is not None else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, which can suggest those commands only that were imported."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, COMMANDS))
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                rows = [
                    (f"{name:<{width}}", entry.help) for name, entry in COMMANDS.items() if entry.section == section
                ]
                formatter.write_dl(rows)


@click.group(
    cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="omnibus", message="%(prog)s %(version)s")
def cli() -> None:
    """Serve omni-modality models as a pipeline of stages over NATS JetStream."""


def main(args: list[str] | None = None) -> None:
    """Run a command line and exit.

    Exit codes: 0 done; 2 what the caller wrote cannot work (usage, configuration, request); 1 any other error of ours,
    in one line on stderr; 130 Ctrl-C; 141 when nobody reads its output any more. Anything else is a bug and keeps its
    traceback.
    """
    prepare_streams()
    try:
        # Without standalone mode click returns the code of `ctx.exit`, or what the command returned.
        status = cli.main(args=args, prog_name="omnibus", standalone_mode=False)
        flush_streams()
    except BaseException as error:  # noqa: BLE001 the root of the process; bugs are raised again
        status = _status_of(error)
    sys.exit(status if isinstance(status, int) else 0)


def _status_of(error: BaseException) -> int:
    """Say what went wrong and return the exit code; raises what is none of ours."""
    from omnibus.errors import ConfigError, OmnibusError, RequestError, StageStartError  # noqa: PLC0415 on failure only

    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # from a task group
        return _status_of(error.exceptions[0])
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return 130
    if isinstance(error, OutputLost):
        if error.exit_code != BROKEN_PIPE_EXIT_CODE:
            click.echo(f"omnibus: {error}", err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, OmnibusError):
        if isinstance(error, StageStartError):  # the last lines of a process: one below the other, the reason last
            from omnibus.observability.logging import as_sentence  # noqa: PLC0415

            message = "\n".join(as_sentence(line) for line in error.message.splitlines())
        else:
            message = " ".join(error.message.split())
        click.echo(f"omnibus: {message}", err=True)
        return 2 if isinstance(error, (ConfigError, RequestError)) else 1
    raise error
