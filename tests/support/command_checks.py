"""Whether a command line of the documentation can work: by its program, without running it."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import click
import yaml

from omnibus.broker.credentials_folder import CONFIG_FILE
from omnibus.cli import COMMANDS
from omnibus.frontdoor.app import create_app
from omnibus.settings import Settings
from omnibus.wire.request import decode_request
from tests.support.front import FixedPipelines, nobody
from tests.support.snippets import ROOT
from tools.site.channels import CHANNELS

ANY_PIPELINE = """
name: NAME
stages:
- {stage_id: 0, name: first, engine: sim, final_output: true, final_output_type: text}
- {stage_id: 1, name: dit, engine: sim, input_sources: [0], final_output: true, final_output_type: image}
"""
"""A file that a command names and no page writes."""
NUMBERS = {"N": "2", "SECONDS": "30", "PORT": "4300", "ADDRESS": "10.0.0.1", "HOST": "10.0.0.1"}
"""Values for the placeholders that stand in commands."""
THEIRS = {"vllm", "kill", "wait", "grep", "useradd", "mkdir", "echo", "tee", "kubectl", "scp"}
"""Programs whose options are not ours to know."""


class CannotWork(Exception):
    """What a command line of the documentation has wrong."""


def check_command(words: Sequence[str], folder: Path) -> None:
    """Raises CannotWork. What the command reads is made in `folder`, which must be the current one."""
    words = words[1:] if words[0] == "sudo" else words
    program = Path(words[0]).name or words[0]
    if program in THEIRS:
        return
    if program not in CHECKS:
        raise CannotWork(f"nothing knows what `{program}` takes: tests/support/command_checks.py")
    CHECKS[program]([NUMBERS.get(word, word) for word in words[1:]], folder)


def _omnibus(words: Sequence[str], folder: Path) -> None:
    """The command's own parser takes it."""
    for word in words:
        _write(word, folder)
    name, *rest = words
    if name not in COMMANDS:
        raise CannotWork(f"omnibus has no command {name}")
    command = COMMANDS[name].load()
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            raise CannotWork(f"omnibus {name} has no command {rest[0]}")
        command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
    try:
        command.make_context(name, list(rest))
    except click.exceptions.Exit:
        return  # --help
    except click.ClickException as error:
        raise CannotWork(f"omnibus {name}: {error.format_message()}") from error


def _write(word: str, folder: Path) -> None:
    """Make a file, or a folder, that a command reads."""
    if not re.fullmatch(r"\w[\w./-]*", word):
        return
    place = folder / word
    if place.suffix == ".yaml" and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(ANY_PIPELINE.replace("NAME", place.stem))
    elif word == "keys":
        place.mkdir(exist_ok=True)
    elif word in {"nats.credentials", "photo.png"}:
        place.touch()


def _make(words: Sequence[str], _folder: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        name, is_variable, _ = word.partition("=")
        if not (name in targets or (is_variable and name in (ROOT / "Makefile").read_text() + _code("tests.chaos"))):
            raise CannotWork(f"make knows no {word}")


def _python(words: Sequence[str], _folder: Path) -> None:
    """`python -m MODULE`, `python FILE`: there is one; the flags of a module are in its code."""
    if words[0] != "-m":
        if words[0] == "-c":
            compile(words[1], "snippet", "exec")
            return
        if (ROOT / words[0]).is_file():
            return
        raise CannotWork("python of what?")
    module, *rest = words[1:]
    if find_spec(module) is None:
        raise CannotWork(f"there is no module {module}")
    known = _code(module.partition(".")[0])
    for flag in (word for word in rest if word.startswith("--")):
        if f'"{flag}"' not in known:
            raise CannotWork(f"{module} knows no {flag}")


def _code(module: str) -> str:
    """The code of a module, all of it where it is a package."""
    place = ROOT / module.replace(".", "/")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return "".join(file.read_text() for file in files if file.is_file())


def _pip(words: Sequence[str], _folder: Path) -> None:
    """Extras of ours exist, and so do folders of this repository."""
    if words[0] != "install":
        raise CannotWork(f"pip {words[0]}")
    for word in words[1:]:
        found = re.fullmatch(r"(\./[\w/-]+|\.)?(?:\[([\w,]+)\])?", word)
        if found is None or not found[1]:
            continue
        project = ROOT / found[1] / "pyproject.toml"
        extras = set(filter(None, (found[2] or "").split(",")))
        if not project.is_file() or not extras <= set(
            tomllib.loads(project.read_text())["project"]["optional-dependencies"]
        ):
            raise CannotWork(f"nothing of this repository installs as {word}")


def _curl(words: Sequence[str], _folder: Path) -> None:
    """The front door has such a route, and the body is JSON."""
    (url,) = [word for word in words if word.startswith("http")]
    bodies = [json.loads(words[place + 1]) for place, word in enumerate(words) if word in ("-d", "--data")]
    methods = [words[place + 1] for place, word in enumerate(words) if word == "-X"]
    method = methods[0] if methods else "POST" if bodies else "GET"
    path = re.sub(r"^https?://[^/]+", "", url).partition("?")[0]
    if not any(method in one[0] and one[1].fullmatch(path) for one in _routes()):
        raise CannotWork(f"the front door has no {method} {path}")


@cache
def _routes() -> list[tuple[set[str], re.Pattern[str]]]:
    app = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True)  # type: ignore[arg-type]
    routes = [route for route in app.routes if getattr(route, "methods", None)]
    return [(route.methods, route.path_regex) for route in routes]  # type: ignore[attr-defined]


def _nats(words: Sequence[str], _folder: Path) -> None:
    """A raw request: a subject of the wire, and a body that can be read."""
    verb, subject, body = words
    (request,) = [channel for channel in CHANNELS if channel.name == "request"]
    pattern = re.sub(r"\\{\w+\\}", "[^.]+", re.escape(request.address))
    if verb != "request" or not re.fullmatch(pattern, subject):
        raise CannotWork(f"no request goes by nats {verb} {subject}")
    decode_request(body.encode())


def _nats_server(words: Sequence[str], _folder: Path) -> None:
    """The file that `omnibus nats credentials` makes."""
    if list(words) != ["-c", f"keys/{CONFIG_FILE}"]:
        raise CannotWork(f"nats-server {shlex.join(words)}")


def _systemctl(words: Sequence[str], _folder: Path) -> None:
    """`systemctl enable --now UNIT@NAME`: one of our units."""
    unit = words[-1].partition("@")[0]
    if not (ROOT / "deploy" / "systemd" / f"{unit}@.service").is_file():
        raise CannotWork(f"there is no unit {unit}")


def _export(words: Sequence[str], _folder: Path) -> None:
    for word in words:
        name = word.partition("=")[0]
        if name != "NATS_URL" and name.removeprefix("OMNIBUS_").lower() not in Settings.model_fields:
            raise CannotWork(f"there is no setting {name}")


def _copy(words: Sequence[str], _folder: Path) -> None:
    source = next(word for word in words if not word.startswith("-"))
    if not (ROOT / source).exists():
        raise CannotWork(f"there is no {source}")


def _docker(words: Sequence[str], _folder: Path) -> None:
    """`docker compose -f FILE up --build`; the file itself is checked in test_deployment_files."""
    if words[0] != "compose" or words[1] != "-f" or "services" not in yaml.safe_load((ROOT / words[2]).read_text()):
        raise CannotWork("docker of what?")


def _helm(words: Sequence[str], _folder: Path) -> None:
    """`helm install NAME CHART --set a.b=c`: values of the chart."""
    values = yaml.safe_load((ROOT / words[2] / "values.yaml").read_text())
    for place, word in enumerate(words):
        if word == "--set":
            found = values
            for step in words[place + 1].partition("=")[0].split("."):
                if step not in found:
                    raise CannotWork(f"the chart has no value {words[place + 1]}")
                found = found[step]


def _source(words: Sequence[str], _folder: Path) -> None:
    if words != [".venv/bin/activate"]:
        raise CannotWork(f". {shlex.join(words)}")


def _node(words: Sequence[str], _folder: Path) -> None:
    _copy([f"examples/node/{words[0] if words[0].endswith('.mjs') else 'package-lock.json'}"], _folder)


CHECKS: dict[str, Callable[[Sequence[str], Path], None]] = {
    "omnibus": _omnibus, "make": _make, "python": _python, "python3": _python, "pip": _pip, "curl": _curl, "nats": _nats,
    "nats-server": _nats_server, "export": _export, "cp": _copy, "docker": _docker, "helm": _helm,
    ".": _source, "systemctl": _systemctl, "npm": _node, "node": _node,
}  # fmt: skip
