"""A model of transformers as a stage names it: loaded whole, on its device. Imports transformers and torch; blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from omnibus.errors import CheckpointMissing, EngineDead, EngineError, OmnibusError, PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.checkpoints import loading, require_file, resolve_model
from omnibus.workers.engines.transformers.generation_engine import GenerationStopped
from omnibus.workers.object_loading import load_object

ENCODER_ONLY = ("encoder", "in_proj", "semantic_encoder", "acoustic_encoder", "fc.")
"""Parts of codecs that only encoding uses: a checkpoint that ships the decoder lacks them."""


def load_model(stage: StageSpec, default_class: str, *, only_decodes: bool = False) -> Any:
    """The model of a stage; raises CheckpointMissing, also for one that lacks weights, and PipelineError for its class."""
    model = resolve_model(stage.model, stage.revision)
    require_file(model, stage.revision, ("config.json",))
    args = stage.engine_args
    kind, dtype = _model_class(args.get("model_class", default_class)), args.get("dtype", "float32")
    # Absent encoders are checked below; transformers would report them at every start.
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with loading(model, stage.revision):
            loaded, info = kind.from_pretrained(model, revision=stage.revision, dtype=dtype, output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(level)
    absent = [name for name in info["missing_keys"] if not (only_decodes and _is_encoder(name))]
    if absent:
        raise CheckpointMissing(f"the checkpoint {stage.model!r} is incomplete: it lacks {absent[0]}")
    return loaded.eval().to(args.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))


def architecture(stage: StageSpec) -> str:
    """The class that a checkpoint says it is of; raises CheckpointMissing, and PipelineError where it names none."""
    model = resolve_model(stage.model, stage.revision)
    require_file(model, stage.revision, ("config.json",))
    with loading(model, stage.revision):
        named = transformers.AutoConfig.from_pretrained(model, revision=stage.revision).architectures
    if not named:
        raise PipelineError("the checkpoint names no class of its own; set it", field="engine_args.model_class")
    return str(named[0])


@contextmanager
def running(model: Any) -> Iterator[None]:
    """Call a model: what it raises is the fault of the engine, and the loss of its device the end of that."""
    try:
        with torch.inference_mode():
            yield
    except (OmnibusError, GenerationStopped):
        raise
    except torch.AcceleratorError as error:
        raise EngineDead(f"the device failed: {error}") from error
    except Exception as error:  # models raise whatever their many parts raise
        raise EngineError(f"{type(model).__name__}: {error}") from error


def sample_rate(args: Mapping[str, Any], config: Any) -> int:
    """The rate of the sound that a model makes; raises PipelineError where nobody says it."""
    rate = args.get("sample_rate") or getattr(config, "sampling_rate", None) or getattr(config, "sample_rate", None)
    if rate is None:
        raise PipelineError("the model's config names no sampling rate; set it", field="engine_args.sample_rate")
    return int(rate)


def whole_number(args: Mapping[str, Any], name: str, least: int) -> int | None:
    """A whole number among a stage's arguments, such as one of frames; raises PipelineError for anything else."""
    count = args.get(name)
    if count is not None and (type(count) is not int or count < least):
        raise PipelineError(f"{count!r} is no whole number from {least} on", field=f"engine_args.{name}")
    return count


def _is_encoder(name: str) -> bool:
    return name.startswith(ENCODER_ONLY) or ".in_proj." in name


def _model_class(name: Any) -> Any:
    """A class of transformers by its name, or any other as `module:Class`."""
    return load_object(name if ":" in str(name) else f"transformers:{name}", "engine_args.model_class")
