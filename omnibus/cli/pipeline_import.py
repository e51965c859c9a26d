"""`omnibus pipeline import`: pipeline files made of vLLM-Omni's registry and deploy files.

vLLM-Omni's own code reads them, in a child process of an interpreter that has it; here only the package of the engine
`vllm_omni` is needed, which says how such stages are checked.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click

TIMEOUT = 600.0
"""Seconds that vLLM-Omni may take to be imported and to read a checkpoint's configuration."""
_PROGRAM = "omnibus_vllm_omni.importing"
_PACKAGE = "omnibus-vllm-omni"


@click.command("import")
@click.argument("source", required=False)
@click.option(
    "--all", "all_of_them", is_flag=True, help="Every pipeline of vLLM-Omni, a file each, into the folder --output."
)
@click.option("--whole", is_flag=True, help="All stages in one of ours, also where each could be one.")
@click.option("--model", help="The checkpoint: a folder or a hub name, where SOURCE does not name one.")
@click.option("--name", help="The name of the pipeline.")
@click.option(
    "--python", help="The interpreter that has vLLM-Omni, which the stages then run under. Default: this one."
)
@click.option(
    "--register", multiple=True, metavar="MODULE", help="A module that registers more pipelines with vLLM-Omni."
)
@click.option("--output", type=click.Path(path_type=Path), help="The file to write instead of standard output.")
def import_pipeline(
    *,
    source: str | None,
    all_of_them: bool,
    whole: bool,
    model: str | None,
    name: str | None,
    python: str | None,
    register: tuple[str, ...],
    output: Path | None,
) -> None:
    """Write a pipeline file for a pipeline of vLLM-Omni (experimental).

    SOURCE is a checkpoint (a folder or a hub name), a deploy file of vLLM-Omni (.yaml), or a name of its registry. Each stage
    of theirs is one of ours where whole payloads cross, else all are one. Comments in the file name what it has not taken over.
    """
    if (source is None) != all_of_them:
        raise click.UsageError("give SOURCE, or --all")
    if all_of_them and (output is None or name is not None):
        raise click.UsageError("--all needs a folder, --output FOLDER, and takes no --name")
    request = {
        "source": source or "",
        "all": all_of_them,
        "whole": whole,
        "model": model or ("MODEL" if all_of_them else None),
    }
    answer = _ask(python or sys.executable, {**request, "name": name, "python": python, "register": list(register)})
    texts = {made["pipeline"]["name"]: _text(made) for made in answer}
    if all_of_them and output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for pipeline, text in texts.items():
            (output / f"{pipeline}.yaml").write_text(text)
        click.echo(f"{len(texts)} pipelines written to {output}")
        return
    (text,) = texts.values()
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)


def _ask(python: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The pipelines that vLLM-Omni has for a request; raises ConfigError."""
    import msgspec  # noqa: PLC0415 commands import when they run

    from omnibus.errors import ConfigError  # noqa: PLC0415
    from omnibus.settings import inherited_environment  # noqa: PLC0415

    try:
        done = subprocess.run(  # noqa: S603 the interpreter that the caller names
            [python, "-m", _PROGRAM], input=msgspec.json.encode(request), capture_output=True, check=False, timeout=TIMEOUT,
            env=inherited_environment(other_python=python != sys.executable),
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"{python} cannot be run: {error.strerror}; name by --python the interpreter of an environment that has "
            f"{_PACKAGE}[gpu]",
            param="python",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"vLLM-Omni under {python} has not answered within {TIMEOUT:g} s", param="python") from error
    if done.returncode != 0 or not done.stdout.startswith(b"{"):
        printed = done.stderr.decode(errors="replace").strip().splitlines() or ["no error was printed"]
        raise ConfigError(
            f"{python} has no vLLM-Omni that can be asked ({printed[-1]}): install {_PACKAGE}[gpu] in its environment, and "
            "name it by --python",
            param="python",
        )
    answer = msgspec.json.decode(done.stdout)
    if "error" in answer:
        raise ConfigError(f"vLLM-Omni: {answer['error']}")
    pipelines: list[dict[str, Any]] = answer["pipelines"]
    return pipelines


def _text(made: dict[str, Any]) -> str:
    """A pipeline file, valid as `pipeline validate` has it but for its model; raises PipelineError."""
    import yaml  # noqa: PLC0415

    from omnibus.pipeline.loading import parse_pipeline  # noqa: PLC0415

    notes = "".join(f"# not taken over: {note}\n" for note in made["notes"])
    text = f"# from vLLM-Omni's registry, by omnibus pipeline import\n{notes}" + yaml.safe_dump(
        made["pipeline"], sort_keys=False, allow_unicode=True, width=120
    )
    parse_pipeline(text, f"{made['pipeline']['name']}.yaml")
    return text
