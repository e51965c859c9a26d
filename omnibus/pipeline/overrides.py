"""Changes from a command line: `--stage-overrides`, `--lb-policy`, `--tokenizer`, `--async-chunk`. Checked like a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from omnibus.errors import PipelineError
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.inheritance import merged
from omnibus.pipeline.loading import build_pipeline
from omnibus.pipeline.route import EdgeMode
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.pipeline.yaml_document import YamlDocument, YamlList, YamlMapping, parse_yaml, places_of

SOURCE = "--stage-overrides"
"""The source that errors name in the place of a file."""
LOCAL_FIELDS = (
    "model", "revision", "devices", "num_replicas", "slots", "python", "env", "engine_args", "default_sampling_params",
)  # fmt: skip
"""Fields in which one replica of a stage may differ from the others."""


def override_stages(spec: PipelineSpec, texts: Iterable[str], source: str = SOURCE) -> PipelineSpec:
    """Change stages of a specification, which stays valid.

    Each text is a mapping of stages, by id or name, to fields, `{"1": {"slots": 2}}` in JSON or YAML, or one assignment,
    `1.slots=2` or `dit.engine_args.dtype=float32`, whose value is YAML. Mappings such as `engine_args` and `env` are merged
    key by key, anything else is replaced; later texts win. Raises PipelineError naming the stage's field.
    """
    document = _as_document(spec, source)
    for text in texts:
        document = merged(document, _overlay(spec, text, source))
    return build_pipeline(document)


def override_locally(spec: PipelineSpec, stage_id: int, texts: Iterable[str], source: str = SOURCE) -> PipelineSpec:
    """Change one stage of a deployed pipeline for the replicas started here, in fields that concern them alone.

    Raises PipelineError too for another stage, and for a field that others rely on.
    """
    changed = override_stages(spec, texts, source)
    for before, after in zip(spec.stages, changed.stages, strict=True):
        if before.stage_id != stage_id and before != after:
            raise PipelineError(f"only stage {stage_id} runs here, not stage {before.stage_id}", file=source)
        shared = [name for name in StageSpec.__struct_fields__ if name not in LOCAL_FIELDS]
        wrong = next((name for name in shared if getattr(before, name) != getattr(after, name)), None)
        if wrong is not None:
            what = f"others rely on it; deploy the pipeline anew, or change one of {', '.join(LOCAL_FIELDS)}"
            raise PipelineError(what, file=source, field=wrong)
    return changed


def lb_policies(spec: PipelineSpec, flags: Iterable[str]) -> list[str]:
    """Translate `--lb-policy` to overrides: `POLICY` is for every stage, `STAGE=POLICY` for one, and wins."""
    given = [flag.rpartition("=") for flag in flags]
    everywhere = [f"{stage.name}.lb_policy={policy}" for ref, _, policy in given if not ref for stage in spec.stages]
    return everywhere + [f"{ref}.lb_policy={policy}" for ref, _, policy in given if ref]


def apply_async_chunk(spec: PipelineSpec, is_on: bool) -> PipelineSpec:
    """Apply `--[no-]async-chunk`: every edge is whole, or those that say `async_chunk` stream, whatever they say.

    Raises PipelineError where it is to be on and no edge can stream.
    """
    if is_on and not any(edge.is_stream or edge.async_chunk is not None for edge in spec.edges):
        what = f"pipeline {spec.name!r} has no edge that can stream: give one `mode: stream`, or `async_chunk: false`"
        raise PipelineError(f"{what}, which this turns on", file="--async-chunk", field="edges")
    changed = (replace(edge, mode=_mode(edge, is_on), async_chunk=None) for edge in spec.edges)
    return build_pipeline(_as_document(replace(spec, edges=tuple(changed)), "--async-chunk"))


def _mode(edge: EdgeSpec, is_on: bool) -> EdgeMode | None:
    if is_on and edge.async_chunk is not None:
        return EdgeMode.STREAM
    return edge.mode if is_on or not edge.is_stream else EdgeMode.WHOLE


def apply_cli_tokenizer(spec: PipelineSpec, tokenizer: str) -> PipelineSpec:
    """Apply `--tokenizer` to every LLM stage that has a tokenizer and names none."""
    stages = tuple(_with_tokenizer(stage, tokenizer) for stage in spec.stages)
    return replace(spec, stages=stages)


def _as_document(spec: PipelineSpec, source: str) -> YamlDocument:
    """The values of a specification as a file would give them: lists, not tuples."""
    return YamlDocument(source, msgspec.msgpack.decode(msgspec.msgpack.encode(spec)))


def _with_tokenizer(stage: StageSpec, tokenizer: str) -> StageSpec:
    if not engine_kind(stage.engine).has_tokenizer or stage.engine_args.get("skip_tokenizer_init"):
        return stage
    return replace(stage, engine_args={"tokenizer": tokenizer, **stage.engine_args})


def _overlay(spec: PipelineSpec, text: str, source: str) -> YamlDocument:
    """Parse one text like a pipeline file, so that errors name the same places."""
    given = parse_yaml(text, source) if _is_mapping(text) else _assignment(text, source)
    if not isinstance(given.values, dict):
        raise PipelineError(f"{text!r} is no mapping of stages to fields, nor STAGE.FIELD=VALUE", file=source)
    stages = YamlList((), dict(enumerate(places_of(given.values).values())))
    for ref, fields in given.values.items():
        if not isinstance(fields, Mapping):
            raise PipelineError(f"stage {ref}: must be a mapping of fields, not {fields!r}", file=source)
        changed = {**fields, "stage_id": _stage_id(spec, ref, fields, source)}
        stages.append(YamlMapping(changed, places_of(fields)))
    return YamlDocument(source, YamlMapping({"stages": stages}, {"stages": (source, 1)}))


def _stage_id(spec: PipelineSpec, ref: str, fields: Mapping[str, Any], source: str) -> int:
    try:
        stage = spec.stage(ref)
    except PipelineError as error:
        raise PipelineError(error.message.removeprefix("stages: "), file=source) from error
    if fields.get("stage_id", stage.stage_id) != stage.stage_id:
        raise PipelineError(f"stage {ref}: its stage_id cannot be changed", file=source)
    return stage.stage_id


def _is_mapping(text: str) -> bool:
    return text.lstrip().startswith("{") or ":" in text.partition("=")[0]


def _assignment(text: str, source: str) -> YamlDocument:
    """Turn `1.engine_args.dtype=float32` into a mapping."""
    target, equals, value = text.partition("=")
    way = tuple(part.strip() for part in target.split("."))
    if not equals or len(way) == 1 or not all(way):
        raise PipelineError(f"{text!r} is not of the form STAGE.FIELD=VALUE", file=source)
    values = parse_yaml(value.strip() or "null", source).values
    for part in reversed(way):
        values = YamlMapping({part: values}, {part: (source, 1)})
    return YamlDocument(source, values)
