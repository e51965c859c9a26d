"""Validation of specifications: names, ranges and the graph. Pure; for files and deployed specifications."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterable, Iterator

import msgspec

from omnibus.errors import ConfigError, PipelineError
from omnibus.pipeline.devices import get_stage_devices_per_replica, replica_devices
from omnibus.pipeline.engines import ModelKind, engine_kind, engine_names
from omnibus.pipeline.files import suggestion
from omnibus.pipeline.plain_values import Path, Problem, field_name, shown, value_problems
from omnibus.pipeline.prefill_decode import role_problems
from omnibus.pipeline.route import EdgeMode, Forwarding
from omnibus.pipeline.spec import NAME_PATTERN, EdgeSpec, PipelineSpec, StageSpec

MODALITY_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,31}")
MODALITIES = ("text", "image", "audio", "video", "embedding", "score", "json")
CALLABLE_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PARALLEL_SIZES = {
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_size_local",
}  # fmt: skip
"""Engine arguments that say how many devices a replica takes."""
WEEK = 7 * 24 * 3600
MOST = 1 << 40
MIB = 1 << 20
MOST_STAGES = 256
MOST_BYTES = 512 * 1024
"""The size of a specification, as it is deployed."""
_LONGEST_VOICE = 64
_DEVICE = re.compile(r"\d{1,4}|[A-Za-z][\w.:/-]{0,99}")


def validate(spec: PipelineSpec) -> None:
    """Raise PipelineError, its `field` naming the place, for the first problem of a specification."""
    problem = next(problems(spec), None)
    if problem is not None:
        raise PipelineError(problem.message, field=field_name(problem.path))


def problems(spec: PipelineSpec) -> Iterator[Problem]:
    """Find the problems, the basic ones first. Later checks rely on the earlier ones: trust only the first problem."""
    yield from value_problems((), spec)
    yield from _size_problems(spec)
    yield from _pipeline_problems(spec)
    yield from _identity_problems(spec)
    for index, stage in enumerate(spec.stages):
        yield from _stage_problems(("stages", index), stage)
    yield from _source_problems(spec)
    yield from _cycle_problems(spec)
    yield from _output_problems(spec)
    yield from role_problems(spec)
    yield from _input_problems(spec)
    for index, edge in enumerate(spec.edges):
        yield from _edge_problems(("edges", index), edge, spec)
    yield from _repeated(("edges",), [(edge.source, edge.target) for edge in spec.edges], "edge")


def _size_problems(spec: PipelineSpec) -> Iterator[Problem]:
    if len(spec.stages) > MOST_STAGES:
        yield Problem(("stages",), f"there are {len(spec.stages)} stages; {MOST_STAGES} may be")
    size = len(msgspec.msgpack.encode(spec))
    if size > MOST_BYTES:
        yield Problem((), f"the specification has {size} bytes; {MOST_BYTES} may be deployed")


def _pipeline_problems(spec: PipelineSpec) -> Iterator[Problem]:
    if not NAME_PATTERN.fullmatch(spec.name):
        yield Problem(("name",), f"{shown(spec.name)} does not match {NAME_PATTERN.pattern}")
    if "interactive" not in spec.lanes or len(set(spec.lanes)) != len(spec.lanes):
        yield Problem(("lanes",), "must be [interactive] or [interactive, batch]")
    # The broker counts the time to live of a heartbeat in whole seconds.
    for field, least, most in (
        ("deadline", 0.1, WEEK),
        ("heartbeat_timeout", 1.0, 3600.0),
        ("input_timeout", 0.1, WEEK),
    ):
        value: float | None = getattr(spec, field)
        if value is not None and not least <= value <= most:
            yield Problem((field,), f"must be from {least:g} to {most:g} seconds, not {value:g}")
    for field in ("max_open_requests", "max_open_per_tenant", "tenant_share", "max_prompt_bytes", "max_attempts"):
        bound: int | None = getattr(spec, field)
        if bound is not None and not 1 <= bound <= MOST:
            yield Problem((field,), f"must be from 1 to {MOST}, not {bound}")
    if not MIB <= spec.max_flow_bytes <= MOST:
        yield Problem(("max_flow_bytes",), f"must be from {MIB} (1 MiB) to {MOST}, not {spec.max_flow_bytes}")
    if spec.max_stored_bytes is not None and not MIB <= spec.max_stored_bytes < 1 << 62:
        yield Problem(("max_stored_bytes",), f"must be at least {MIB} (1 MiB), not {spec.max_stored_bytes}")
    if not spec.stages:
        yield Problem(("stages",), "a pipeline has at least one stage")


def _identity_problems(spec: PipelineSpec) -> Iterator[Problem]:
    for index, stage in enumerate(spec.stages):
        if not 0 <= stage.stage_id <= 9999:
            yield Problem(("stages", index, "stage_id"), f"must be from 0 to 9999, not {stage.stage_id}")
        if not NAME_PATTERN.fullmatch(stage.name):
            yield Problem(("stages", index, "name"), f"{shown(stage.name)} does not match {NAME_PATTERN.pattern}")
    yield from _repeated(("stages",), [stage.stage_id for stage in spec.stages], "stage id", field="stage_id")
    yield from _repeated(("stages",), [stage.name for stage in spec.stages], "stage name", field="name")


def _stage_problems(path: Path, stage: StageSpec) -> Iterator[Problem]:
    for field, least, most in (("num_replicas", 0, 1024), ("slots", 1, 4096)):
        value: int = getattr(stage, field)
        if not least <= value <= most:
            yield Problem((*path, field), f"must be from {least} to {most}, not {value}")
    yield from _engine_problems(path, stage)
    yield from _speech_problems(path, stage)
    yield from _duration_problems(path, stage)
    given = stage.final_output_type
    modalities = (given,) if isinstance(given, str) else given or ()
    wrong = next((one for one in modalities if not MODALITY_PATTERN.fullmatch(one)), None)
    if wrong is not None or len(set(modalities)) != len(modalities) or given == ():
        message = f"{shown(given if wrong is None else wrong)} is not a word in lower case, or a list of different ones"
        yield Problem((*path, "final_output_type"), message)
    for field in ("input_processor", "prompt_expand"):
        function: str | None = getattr(stage, field)
        if function is not None and not CALLABLE_PATTERN.fullmatch(function):
            yield Problem((*path, field), f"{shown(function)} is not of the form module:function")
    yield from _environment_problems(path, stage)
    for name in _PARALLEL_SIZES & stage.engine_args.keys():
        size = stage.engine_args[name]
        if type(size) is not int or size < 1:
            yield Problem((*path, "engine_args", name), f"must be at least 1, not {shown(size)}")
            return
    yield from _device_problems((*path, "devices"), stage)


def _environment_problems(path: Path, stage: StageSpec) -> Iterator[Problem]:
    if stage.python is not None and (not stage.python.startswith(("/", "~/")) or "\0" in stage.python):
        yield Problem((*path, "python"), f"{shown(stage.python)} is no absolute path, such as /opt/venv/bin/python")
    for variable in stage.env:
        if not variable or "=" in variable or "\0" in variable + stage.env[variable]:
            yield Problem((*path, "env", variable), f"{shown(variable)} cannot be an environment variable")


def _device_problems(path: Path, stage: StageSpec) -> Iterator[Problem]:
    try:
        needed = get_stage_devices_per_replica(stage)
        replica_devices(stage)
    except (ValueError, TypeError, OverflowError) as error:
        yield Problem(path, str(error))
        return
    entries = [entry.strip() for entry in stage.devices.split(",")] if stage.devices.strip() else []
    for entry in entries:
        if not _DEVICE.fullmatch(entry):
            yield Problem(path, f"{shown(entry)} is no device; give numbers or identifiers, with commas between them")
    if entries and len(entries) < needed:
        yield Problem(
            path, f"a replica takes {needed} devices by its engine_args, and there are {len(entries)}: {stage.devices}"
        )
    if len(set(entries)) != len(entries):
        yield Problem(path, f"a device is named twice: {shown(stage.devices)}")


def _engine_problems(path: Path, stage: StageSpec) -> Iterator[Problem]:
    known = engine_names()
    if stage.engine not in known:
        hint = suggestion(stage.engine, known) or "; the package of an engine must be installed here, too"
        yield Problem((*path, "engine"), f"{shown(stage.engine)} is not one of {', '.join(known)}{hint}")
        return
    try:
        kind = engine_kind(stage.engine)
    except ConfigError as error:  # of a broken package
        yield Problem((*path, "engine"), error.message)
        return
    beyond = next((one for one in stage.final_types if kind.gives is not None and one not in kind.gives), None)
    if beyond is not None:
        delivers = f"the engine {stage.engine} delivers {' or '.join(sorted(kind.gives or ()))}, not {beyond}"
        yield Problem((*path, "final_output_type"), delivers)
    # Code has names of its own for what it makes; the engine of a checkpoint has not.
    if kind.gives is None and kind.model is ModelKind.CHECKPOINT:
        for one in stage.final_types:
            if one not in MODALITIES and (hint := suggestion(one, MODALITIES)):
                yield Problem((*path, "final_output_type"), f"there is no {shown(one)}{hint}")
    taken = stage.engine_args.keys() if kind.arguments is None else kind.arguments
    for name in stage.engine_args:
        if name not in taken:
            hint = suggestion(name, taken) or f"; it takes {', '.join(sorted(taken)) or 'none'}"
            yield Problem((*path, "engine_args", name), f"the engine {stage.engine} has no such argument{hint}")
    if stage.added_adapters and not kind.loads_adapters(stage.engine_args):
        yield Problem((*path, "added_adapters"), f"this stage of {stage.engine} takes no adapters while it runs")


def _duration_problems(path: Path, stage: StageSpec) -> Iterator[Problem]:
    durations: dict[Path, float | None] = {("timeout",): stage.timeout, ("stall_timeout",): stage.stall_timeout}
    if stage.canary is not None:
        durations |= {("canary", "interval"): stage.canary.interval, ("canary", "timeout"): stage.canary.timeout}
    for place, seconds in durations.items():
        if seconds is not None and not 0.1 <= seconds <= WEEK:
            yield Problem((*path, *place), f"must be from 0.1 to {WEEK} seconds, not {seconds:g}")


def _speech_problems(path: Path, stage: StageSpec) -> Iterator[Problem]:
    if stage.speech is None:
        return
    for voice in stage.speech.voices:
        if not 1 <= len(voice) <= _LONGEST_VOICE or not voice.isprintable():
            place = (*path, "speech", "voices", voice[:_LONGEST_VOICE])
            yield Problem(place, f"a voice's name has 1 to {_LONGEST_VOICE} printable characters")
    for field in ("speed", "instructions"):
        if (name := getattr(stage.speech, field)) is not None and not name.isidentifier():
            yield Problem((*path, "speech", field), f"{shown(name)} is no name of a parameter")


def _source_problems(spec: PipelineSpec) -> Iterator[Problem]:
    known = {stage.stage_id for stage in spec.stages}
    for index, stage in enumerate(spec.stages):
        path: Path = ("stages", index, "input_sources")
        for position, source in enumerate(stage.input_sources):
            if source not in known:
                yield Problem((*path, position), f"stage {source} does not exist; the stages are {_listed(known)}")
            if source == stage.stage_id:
                yield Problem((*path, position), f"stage {source} cannot be its own input")
        yield from _repeated(path, stage.input_sources, "input source")


def _cycle_problems(spec: PipelineSpec) -> Iterator[Problem]:
    graph = graphlib.TopologicalSorter({stage.stage_id: stage.input_sources for stage in spec.stages})
    try:
        graph.prepare()
    except graphlib.CycleError as error:
        cycle: list[int] = error.args[1]
        index = [stage.stage_id for stage in spec.stages].index(cycle[1])
        way = " → ".join(str(stage_id) for stage_id in cycle)
        yield Problem(("stages", index, "input_sources"), f"the stages form a cycle: {way}")


def _output_problems(spec: PipelineSpec) -> Iterator[Problem]:
    for index, stage in enumerate(spec.stages):
        if stage.final_output and stage.final_output_type is None:
            yield Problem(("stages", index, "final_output"), "needs a final_output_type, such as text")
        if stage.final_output_type is not None and not stage.final_output:
            yield Problem(("stages", index, "final_output_type"), "needs final_output: true")
        if stage.on_demand and not stage.final_output:
            yield Problem(("stages", index, "on_demand"), "needs final_output: true")
    if not any(stage.final_output for stage in spec.stages):
        yield Problem(("stages",), "no stage has final_output: true, so nothing would be delivered")
    elif not spec.default_modalities:
        yield Problem(("stages",), "all outputs are on_demand, so a request without modalities would get nothing")
    feeding = {source for stage in spec.stages for source in stage.input_sources}
    for index, stage in enumerate(spec.stages):
        if not stage.final_output and stage.stage_id not in feeding:
            yield Problem(("stages", index), f"nothing needs stage {stage.name!r}: it is no final output and no input")


def _input_problems(spec: PipelineSpec) -> Iterator[Problem]:
    if spec.input_timeout is None:
        return
    for stage in spec.stages:
        if not stage.input_sources and (why := cannot_listen(stage)) is not None:
            yield Problem(("input_timeout",), f"stage {stage.name!r} {why}, so the pipeline takes no open input")


def cannot_listen(stage: StageSpec) -> str | None:
    """Why a first stage cannot read an open input, if that is so."""
    if not engine_kind(stage.engine).takes_open_input:
        return f"has the engine {stage.engine}, which takes whole inputs only"
    if stage.canary is not None:
        return "has a canary, whose input is whole"
    if stage.prompt_expand is not None:
        return "expands its prompts, which are whole"
    return None


def _edge_problems(path: Path, edge: EdgeSpec, spec: PipelineSpec) -> Iterator[Problem]:
    sources = {stage.stage_id: stage.input_sources for stage in spec.stages}
    for field, stage_id in (("source", edge.source), ("target", edge.target)):
        if stage_id not in sources:
            yield Problem((*path, field), f"stage {stage_id} does not exist; the stages are {_listed(sources)}")
    if edge.source == edge.target:
        yield Problem((*path, "target"), f"an edge cannot lead from stage {edge.source} to itself")
    if edge.source not in sources[edge.target]:
        yield Problem((*path, "target"), f"stage {edge.target} does not have {edge.source} among its input_sources")
    # Only an orchestrator, which sees every result, knows when the last input of a join is there.
    if edge.forwarding is Forwarding.DIRECT and len(sources[edge.target]) > 1:
        yield Problem((*path, "forwarding"), f"stage {edge.target} joins several inputs, so it cannot be fed directly")

    if edge.mode is not None and edge.async_chunk not in (None, edge.mode is EdgeMode.STREAM):
        yield Problem((*path, "async_chunk"), f"contradicts mode: {edge.mode}; write one of the two")
    if edge.is_stream and (why := _cannot_read(spec.stage(edge.target))) is not None:
        field = "mode" if edge.mode is not None else "async_chunk"
        yield Problem((*path, field), f"stage {edge.target} {why}; make the edge whole")


def _cannot_read(stage: StageSpec) -> str | None:
    """Why a stage cannot read another one while it runs, if that is so."""
    if len(stage.input_sources) > 1:
        return "joins several inputs, so none of them can be streamed to it"
    if not engine_kind(stage.engine).takes_flows:
        return f"has the engine {stage.engine}, which takes whole inputs only"
    if stage.canary is not None:
        return "has a canary, whose input is whole"
    if stage.prompt_expand is not None:
        return "expands its input, and a flow can be read once only"
    return None


def _repeated(path: Path, values: Iterable[object], what: str, *, field: str | None = None) -> Iterator[Problem]:
    seen: list[object] = []
    for index, value in enumerate(values):
        if value in seen:
            yield Problem((*path, index, *([field] if field else [])), f"{what} {value!r} is used twice")
        seen.append(value)


def _listed(stage_ids: Iterable[int]) -> str:
    return ", ".join(str(stage_id) for stage_id in sorted(stage_ids))
