"""Rules for the whole source tree: its imports, its exports, and the length of its files."""

from __future__ import annotations

import pkgutil
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import click
import pytest

import omnibus
from omnibus import cli

pytestmark = pytest.mark.unit

ROOT = Path(omnibus.__file__).parents[1]
CORE = ("cli", "frontdoor", "client", "orchestrator", "registry", "payloads", "broker", "requests", "wire", "pipeline")
HEAVY = {"torch", "vllm", "diffusers", "transformers"}
LONGEST_FILE = 400
HELP_SECONDS = 0.2


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)


def test_help_takes_less_than_200_ms_when_a_whole_process_is_measured() -> None:
    seconds = []
    for _ in range(7):
        before = _cpu_of_children()  # not the time on the wall, which others on this machine lengthen
        _run(sys.executable, "-m", "omnibus.cli", "--help")
        seconds.append(_cpu_of_children() - before)
    assert median(seconds) < HELP_SECONDS


def test_no_heavy_engine_is_imported_when_all_of_the_core_is() -> None:
    modules = [
        found.name
        for folder in CORE
        for found in pkgutil.walk_packages([str(ROOT / "omnibus" / folder)], f"omnibus.{folder}.")
        if not found.name.endswith("__main__")
    ]
    modules += ["omnibus.workers.supervisor", "omnibus.workers.replica_processes", "omnibus.workers.replica"]
    done = _run(sys.executable, "-c", f"import sys, {', '.join(modules)}; print(*sys.modules)")
    assert not {module.partition(".")[0] for module in done.stdout.split()} & HEAVY


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_when_it_is_asked_for(name: str) -> None:
    command = cli.COMMANDS[name].load()
    assert command.help
    assert all(getattr(parameter, "help", "") for parameter in command.params if parameter.param_type_name == "option")


def test_commands_that_show_something_print_json_when_it_is_asked_for() -> None:
    """All but those that act, those that serve, and a pipeline as its own YAML."""
    found = {name: its for group in cli.COMMANDS for name, its in _leaves(group, cli.COMMANDS[group].load())}
    shows = {name for name in found if name.split()[-1] in {"list", "show", "status", "plan"}} - {"pipeline show"}
    shows |= {"top", "queue", "requests", "trace", "doctor", "bench", "collect-env", "version", "submit"}
    without = {name for name in shows if not any("--json" in one.opts for one in found[name].params)}
    assert without == set()


def _leaves(name: str, command: click.Command) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(name, command)]
    return [leaf for one, its in command.commands.items() for leaf in _leaves(f"{name} {one}", its)]


def test_nats_folder_shadows_nothing_when_python_looks_for_nats() -> None:
    assert not list((ROOT / "nats").rglob("*.py"))
    import nats  # noqa: PLC0415

    assert Path(str(nats.__file__)).is_relative_to(ROOT) is False or ".venv" in str(nats.__file__)


def test_no_written_file_has_more_than_400_lines() -> None:
    too_long = {
        str(file.relative_to(ROOT)): count
        for folder in ("omnibus", "tools", "tests", "bench", "examples", "nats", "deploy", "docs")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".mjs", ".md", ".yaml", ".conf"} and "node_modules" not in file.parts
        if file.name != "production.conf"  # made from the table of roles, a line a permission
        if (count := len(file.read_text().splitlines())) > LONGEST_FILE
    }
    assert too_long == {}


def test_architecture_page_stays_under_120_lines() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) < 120


def test_public_names_exist_and_are_sorted() -> None:
    exported = getattr(omnibus, "__all__", [])
    assert list(exported) == sorted(exported)
    assert all(hasattr(omnibus, name) for name in exported)


def test_version_is_printed_when_asked_for() -> None:
    done = _run(sys.executable, "-m", "omnibus.cli", "version")
    assert done.stdout.startswith("omnibus ")


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_setup_prints_a_few_lines_when_everything_has_to_be_installed() -> None:
    """What its installers say is left out, but for their errors; the steps are said."""
    planned = _run("make", "--dry-run", "--always-make", "--directory", str(ROOT), "setup").stdout
    installers = [line for line in planned.splitlines() if "pip install" in line]
    assert len(installers) == 2
    assert all("--quiet" in line for line in installers)
    assert planned.count("printf") == 3
