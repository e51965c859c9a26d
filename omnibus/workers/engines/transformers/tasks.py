"""The tasks of a transformers stage: codes to sound, a text to sound, a sound to its text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from omnibus.errors import PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Engine
from omnibus.workers.engines.transformers.engine import TransformersEngine
from omnibus.workers.engines.transformers.generation_engine import GeneratingModel, GenerationEngine

_SHARED = frozenset({"device", "dtype", "model_class", "task"})
_SOUND = frozenset({"chunk_frames", "context_frames", "first_frames", "max_frames"})
ARGUMENTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "decode": _SHARED
        | _SOUND
        | {"argument", "input", "max_batch", "method", "method_kwargs", "output", "sample_rate"},
        "speak": _SHARED | _SOUND | {"max_characters", "vocoder"},
        "transcribe": _SHARED,
    }
)
"""The arguments of each task."""
_SOUND_OUT = MappingProxyType({"audio": "audio", "sample_rate": "json"})
_TEXT_OUT = MappingProxyType({"text": "text", "language": "json", "seconds": "json"})


def transformers_engine(stage: StageSpec) -> Engine:
    """The engine of a stage by the `task` of its arguments, `decode` by default; raises PipelineError for another one."""
    task = stage.engine_args.get("task", "decode")
    if task not in ARGUMENTS:
        raise PipelineError(f"{task!r} is not one of {', '.join(ARGUMENTS)}", field="engine_args.task")
    for name in stage.engine_args.keys() - ARGUMENTS[task]:
        raise PipelineError(f"the task {task} has no argument {name!r}", field=f"engine_args.{name}")
    wanted = "text" if task == "transcribe" else "audio"
    if stage.final_output_type not in (None, wanted):
        what = f"the task {task} delivers {wanted}, not {stage.final_output_type}"
        raise PipelineError(what, field="final_output_type")
    if task == "decode":
        return TransformersEngine(stage)
    return GenerationEngine(stage, _TEXT_OUT if task == "transcribe" else _SOUND_OUT, _MODELS[task])


def _speaker(stage: StageSpec) -> GeneratingModel:
    # Seconds of import, off the loop.
    from omnibus.workers.engines.transformers.speaker_classes import speaker_of  # noqa: PLC0415

    return speaker_of(stage)


def _transcriber(stage: StageSpec) -> GeneratingModel:
    from omnibus.workers.engines.transformers.transcriber import Transcriber  # noqa: PLC0415

    return Transcriber(stage)


_MODELS = {"speak": _speaker, "transcribe": _transcriber}
