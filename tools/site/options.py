"""The page of every option of every command, read from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator

import click

from omnibus.cli import COMMANDS
from omnibus.settings import Settings

_HEAD = """# Options

Made from the commands when the site is built: `omnibus COMMAND --help` shows the same. What the commands do is on
[the command line](cli.md), what the variables mean under [settings](../guide/serving.md#settings). A flag wins over its variable.
"""


def options_page() -> str:
    """The page in Markdown, a section a command."""
    return "\n".join([_HEAD, *(_section(name, command) for name, command in all_commands())])


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its words, those of groups too; other names of one are left out."""
    known: set[int] = set()
    for name, entry in COMMANDS.items():
        command = entry.load()
        if id(command) not in known:
            known.add(id(command))
            yield from _with_subcommands(f"omnibus {name}", command)


def _with_subcommands(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _with_subcommands(f"{words} {name}", child)


def _section(words: str, command: click.Command) -> str:
    context = click.Context(command, info_name=words)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## {words}", "", " ".join((command.help or "").split()), "", "```text", f"{words} {usage}", "```", ""]
    rows = [_row(option, context) for option in shown_options(command)]
    if rows:
        lines += ["| option | variable | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def shown_options(command: click.Command) -> list[click.Option]:
    """The options that `--help` shows."""
    return [option for option in command.params if isinstance(option, click.Option) and not option.hidden]


def _row(option: click.Option, context: click.Context) -> str:
    names, text = (_cell(part) for part in option.get_help_record(context) or ("", ""))
    return f"| `{names}` | {variable(option)} | {text} |"


def variable(option: click.Option) -> str:
    """The setting that an option sets, as a variable; empty for one of the command alone."""
    is_setting = not option.expose_value and option.name in Settings.model_fields
    return f"`OMNIBUS_{option.name.upper()}`" if is_setting and option.name else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
