"""The `omnibus` command. A command is a module of this folder, imported only when it runs or shows its own help."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a command is, and its line in `omnibus --help`."""

    module: str
    help: str
    hidden: bool = False


# Invariant: the line is written here, not taken from the command, so that `omnibus --help` imports nothing but click.
COMMANDS = {
    "serve": _Entry("serve", "Run a whole pipeline on this machine."),
    "up": _Entry("serve", "The same as serve.", hidden=True),
    "frontdoor": _Entry("frontdoor", "Run the HTTP server."),
    "orchestrator": _Entry("orchestrator", "Run an orchestrator."),
    "worker": _Entry("worker", "Run replicas of one stage."),
    "submit": _Entry("submit", "Send a request: stream its text, save its image and audio."),
    "status": _Entry("status", "Show stages, replicas and queues, or one request."),
    "restart": _Entry("restart", "Restart the replicas of a stage, one after the other."),
    "cancel": _Entry("cancel", "Cancel requests by id."),
    "dead": _Entry("dead", "List, show, retry or drop requests whose attempts were used up."),
    "pipeline": _Entry("pipeline", "Show, validate, deploy, list or delete pipelines."),
    "nats": _Entry("nats", "Show or apply what the broker must hold."),
    "demo": _Entry("demo", "One sentence through omni-tiny, judged.", hidden=True),
    "version": _Entry("version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed: `command` of `omnibus.cli.<module>`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        return [name for name, entry in COMMANDS.items() if not entry.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 click's signature
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"omnibus.cli.{entry.module}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="omnibus", message="%(prog)s %(version)s")
def cli() -> None:
    """Serve omni-modality models as a pipeline of stages over NATS JetStream."""


def main(args: list[str] | None = None) -> None:
    """Run a command line and exit.

    Exit codes: 0 done; 2 what the caller wrote cannot work (usage, configuration, request); 1 any other error of ours,
    in one line on stderr; 130 Ctrl-C. Anything else is a bug and keeps its traceback.
    """
    try:
        status = cli.main(args=args, prog_name="omnibus", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 the root of the process; bugs are raised again
        sys.exit(_status_of(error))
    # Without standalone mode click returns the code of `ctx.exit`, or what the command returned.
    sys.exit(status if isinstance(status, int) else 0)


def _status_of(error: BaseException) -> int:
    """Say what went wrong and return the exit code; raises what is none of ours."""
    from omnibus.errors import ConfigError, OmnibusError, RequestError, StageStartError  # noqa: PLC0415 on failure only

    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # from a task group
        return _status_of(error.exceptions[0])
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return 130
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, OmnibusError):
        # The last lines of a process: one below the other, the reason last.
        has_log = isinstance(error, StageStartError)
        click.echo(f"omnibus: {error.message if has_log else ' '.join(error.message.split())}", err=True)
        return 2 if isinstance(error, (ConfigError, RequestError)) else 1
    raise error
