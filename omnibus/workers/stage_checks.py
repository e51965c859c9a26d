"""Checks of stages before anything of them is started: the modules, engine arguments and models that they name.

As a program, `python -m omnibus.workers.stage_checks names|models`, it imports what the stages on its standard input name, or
finds their models: in a process of its own, since a module may do anything when it is imported, or never come back, and under
the stage's interpreter.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import IO

import msgspec

from omnibus.errors import CheckpointMissing, ConfigError, PipelineError
from omnibus.pipeline.engines import ModelKind, engine_kind
from omnibus.pipeline.plain_values import Path, Problem
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.settings import inherited_environment
from omnibus.workers.engines import create_engine
from omnibus.workers.engines.checkpoints import find_model, require_file, resolve_model
from omnibus.workers.interpreters import check_version, interpreter_of, version_environment
from omnibus.workers.object_loading import load_object

TIMEOUT = 60.0
"""Seconds that the modules of a pipeline may take to be imported."""

MODELS_TIMEOUT = 3600.0
"""Seconds that models of stages under another interpreter may take to be found, which converts or fetches some."""


class _Report(msgspec.Struct, frozen=True):
    """One line of the program's output: what it begins to check, or what is wrong with that."""

    path: tuple[str | int, ...]
    message: str | None = None


def check_models(stages: Iterable[StageSpec]) -> None:
    """Raise CheckpointMissing for the first stage whose model is not there, ConfigError for one whose interpreter cannot run it.

    Of a model on the hub a small file is fetched, one that is a single file is made a folder. Blocks.
    """
    for index, stage in enumerate(stages):
        if stage.python is None:
            try:
                _prepare_model(stage)
            except CheckpointMissing as error:
                raise CheckpointMissing(f"stage {stage.name!r}: {error.message}", param="model") from error
        else:
            for problem in _in_child(_MODELS, {index: stage}, MODELS_TIMEOUT):
                kind = CheckpointMissing if problem.path[-1:] == ("model",) else ConfigError
                raise kind(f"stage {stage.name!r}: {problem.message}", param=str(problem.path[-1]))


def _prepare_model(stage: StageSpec) -> None:
    _check_model(stage, resolve_model, ask_hub=not any(name.startswith("HF_") for name in stage.env))


def _find_model(stage: StageSpec) -> None:
    if stage.num_replicas:
        _check_model(stage, find_model, ask_hub=False)


def _check_model(stage: StageSpec, find: Callable[[str, str | None], str], *, ask_hub: bool) -> None:
    kind = engine_kind(stage.engine)
    if kind.model is ModelKind.CHECKPOINT:
        found = FilePath(find(stage.model, stage.revision))
        if found.is_dir() or (ask_hub and not found.exists() and find_spec("huggingface_hub") is not None):
            require_file(str(found), stage.revision, kind.checkpoint_files)


def problems_of_names(spec: PipelineSpec, timeout: float = TIMEOUT) -> Iterator[Problem]:
    """Everything that is wrong with the modules, engine arguments and folders of models that a valid pipeline names.

    Modules are imported under the interpreters and in the environments of their stages; `timeout` is for those of one
    environment together, seconds. Models of stages that are served elsewhere (`num_replicas: 0`), and on the hub, are not
    looked for.
    """
    environments: dict[tuple[object, ...], dict[int, StageSpec]] = {}
    for index, stage in enumerate(spec.stages):
        environments.setdefault((stage.python, *sorted(stage.env.items())), {})[index] = stage
    for stages in environments.values():
        yield from _in_child(_NAMES, stages, timeout)


def _in_child(checks: str, stages: Mapping[int, StageSpec], timeout: float) -> Iterator[Problem]:
    """Check stages of one interpreter and environment."""
    one = next(iter(stages.values()))
    place: Path = ("stages", next(iter(stages)), "python")
    env = {**inherited_environment(other_python=one.python is not None), **one.env, **version_environment()}
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as found,
    ):  # files: a grandchild could hold a pipe open
        given.write(msgspec.msgpack.encode(stages))
        given.seek(0)
        try:
            child = subprocess.Popen(  # noqa: S603 the stage's interpreter and our own module
                [interpreter_of(one), "-m", "omnibus.workers.stage_checks", checks],
                stdin=given, stdout=found, stderr=subprocess.DEVNULL if checks == _NAMES else None, env=env,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            yield Problem(place, f"{interpreter_of(one)} cannot be run: {error.strerror}")
            return
        try:
            status: int | None = child.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):  # unless the module has left nothing behind
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        found.seek(0)
        reports = list(_reports(found))
    yield from (Problem(report.path, report.message) for report in reports if report.message is not None)
    if not reports:
        yield Problem(
            place, f"{interpreter_of(one)} has no omnibus that can check this: install the one there that is here"
        )
    elif status != 0:
        yield Problem(reports[-1].path, _ending(status, timeout))


def _reports(lines: Iterable[bytes]) -> Iterator[_Report]:
    with suppress(msgspec.DecodeError):  # of a program that is none of ours
        yield from (msgspec.json.decode(line, type=_Report) for line in lines)


def _ending(status: int | None, timeout: float) -> str:
    return f"is not imported within {timeout:g} s" if status is None else f"ends the process that imports it ({status})"


def main() -> None:
    """Check the stages on standard input, by their index, and report on standard output, a line each."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)  # modules may print
        stages = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=dict[int, StageSpec])
        for index, stage in stages.items():
            _check_stage(("stages", index), stage, out)
    os._exit(0)  # not by the end of main, which waits for threads


def _check_stage(path: Path, stage: StageSpec, out: IO[bytes]) -> None:
    def report(field: str, message: str | None = None) -> None:
        out.write(msgspec.json.encode(_Report((*path, *field.split(".")), message)) + b"\n")

    for field, check in _CHECKS[sys.argv[1]]:
        report(field)
        try:
            check(stage)
        except PipelineError as error:
            report(error.field or field, error.message.removeprefix(f"{error.field}: "))
        except ConfigError as error:
            report(error.param or field, error.message)
        except BaseException as error:  # noqa: BLE001 of the stage's own code
            report(field, f"cannot be imported: {type(error).__name__}: {error}")


def _check_processor(stage: StageSpec) -> None:
    if stage.input_processor is not None:
        load_object(stage.input_processor, "input_processor")


def _check_expansion(stage: StageSpec) -> None:
    if stage.prompt_expand is not None:
        load_object(stage.prompt_expand, "prompt_expand")


_NAMES, _MODELS = "names", "models"
_CHECKS: Mapping[str, tuple[tuple[str, Callable[[StageSpec], object]], ...]] = {
    _NAMES: (
        ("python", lambda _stage: check_version()),
        ("model", _find_model),
        ("input_processor", _check_processor),
        ("prompt_expand", _check_expansion),
        ("model", create_engine),
    ),
    _MODELS: (("python", lambda _stage: check_version()), ("model", _prepare_model)),
}
"""The checks of each kind, by the field that they are about."""

if __name__ == "__main__":
    main()
