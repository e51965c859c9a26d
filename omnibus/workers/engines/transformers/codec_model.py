"""A codec's or vocoder's decoder under transformers. Imports transformers and torch; everything here blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from omnibus.errors import CheckpointMissing, EngineDead, EngineError, EngineRejected, PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.checkpoints import loading, require_file, resolve_model
from omnibus.workers.object_loading import load_object

ENCODER_ONLY = ("encoder", "in_proj", "semantic_encoder", "acoustic_encoder", "fc.")
"""Parts of codecs that only encoding uses: a checkpoint that ships the decoder lacks them."""
CONTEXT = ("left_context", "right_context")
"""Values that count the frames at either end of a part that belong to its neighbours: their sound is cut off."""


@dataclass(frozen=True, slots=True)
class Part:
    """Frames to decode, (K, T) int64 or (T, D) float32; `left` and `right` of them are there for context only."""

    array: np.ndarray
    frames: int
    left: int = 0
    right: int = 0

    @property
    def kept(self) -> int:
        """Frames whose sound is wanted."""
        return self.frames - self.left - self.right


class Decoder:
    """A model that turns codes (or features) into sound.

    `input` of engine_args names the value it takes: `codes`, int (T,) or (K, T), or anything else as float features (T, D).
    Beside it `left_context` and `right_context` may count frames of context, for a sound that is decoded in parts.
    """

    def __init__(self, stage: StageSpec) -> None:
        args = stage.engine_args
        self.input = str(args.get("input", "codes"))
        self._argument = str(args.get("argument", "audio_codes" if self.input == "codes" else self.input))
        self._constants = dict(args.get("method_kwargs", {}))
        self._output = str(args.get("output", "audio_values" if self.input == "codes" else "waveform"))
        self._max_frames = int(args.get("max_frames", 100_000))
        self._device = str(args.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = _load(stage).to(self._device)
        self._decode = getattr(
            self._model, str(args.get("method", "decode" if self.input == "codes" else "forward")), None
        )
        if self._decode is None:
            raise PipelineError(f"{type(self._model).__name__} has no such method", field="engine_args.method")
        self.sample_rate = _sample_rate(args, self._model.config)

    def check(self, values: Mapping[str, Any], before: int = 0) -> Part:
        """A part of a sound, `before` frames of which came before; raises EngineRejected for what the decoder cannot take."""
        if self.input not in values:
            raise EngineRejected(f"this stage needs {self.input!r}", param=self.input)
        unknown = sorted(values.keys() - {self.input, *CONTEXT})
        if unknown:
            raise EngineRejected(f"this stage takes {self.input!r}, not {unknown[0]!r}", param=unknown[0])
        array = np.asarray(values[self.input])
        checked = self._codes(array) if self.input == "codes" else self._features(array)
        frames = checked.shape[-1] if self.input == "codes" else len(checked)
        part = Part(checked, frames, *(_count(values, name) for name in CONTEXT))
        if part.kept <= 0 and part.left + part.right:
            raise EngineRejected(f"{self.input} has {frames} frames, and all of them are context", param=CONTEXT[0])
        total = before + part.kept
        if not 0 < total <= self._max_frames:
            raise EngineRejected(
                f"{self.input} has {total} frames; 1 to {self._max_frames} can be decoded", param=self.input
            )
        return part

    def decode(self, part: Part) -> np.ndarray:
        """Samples (kept frames × hop,) float32 of what `check` returned; raises EngineError."""
        assert self._decode is not None
        tensor = torch.from_numpy(part.array)[None].to(self._device)
        if tensor.is_floating_point():
            tensor = tensor.to(self._model.dtype)
        try:
            with torch.inference_mode():
                result = self._decode(**{self._argument: tensor}, **self._constants)
        except torch.AcceleratorError as error:
            raise EngineDead(f"the device failed: {error}") from error
        except Exception as error:  # models raise whatever their many parts raise
            raise EngineError(f"{type(self._model).__name__}: {error}") from error
        sound = result if isinstance(result, torch.Tensor) else result[self._output]
        samples: np.ndarray = sound.float().cpu().numpy().reshape(-1)
        # Odd strides lose a few samples at the end of all: the frames lie where the model's own hop has them.
        hop = int(getattr(self._model.config, "hop_length", None) or round(len(samples) / part.frames))
        return samples[hop * part.left : hop * (part.left + part.kept) if part.right else None]

    def _codes(self, array: np.ndarray) -> np.ndarray:
        if array.ndim not in (1, 2) or (array.size and not np.issubdtype(array.dtype, np.integer)):
            wanted = "whole numbers of shape (T,) or (K, T)"
            raise EngineRejected(f"codes must be {wanted}, not {array.dtype} {array.shape}", param="codes")
        codes, config = np.atleast_2d(array).astype(np.int64), self._model.config
        books = getattr(config, "n_codebooks", None) or getattr(config, "num_quantizers", None)
        if books is not None and len(codes) > books:
            raise EngineRejected(f"{len(codes)} rows of codes; the codec has {books} codebooks", param="codes")
        size = getattr(config, "codebook_size", None)
        if size is not None and codes.size and not (codes.min() >= 0 and codes.max() < size):
            raise EngineRejected(f"codes run from {codes.min()} to {codes.max()}; 0 to {size - 1} exist", param="codes")
        return codes

    def _features(self, array: np.ndarray) -> np.ndarray:
        if array.ndim != 2 or array.dtype.kind != "f":
            wanted = "floats of shape (T, D)"
            raise EngineRejected(f"{self.input} must be {wanted}, not {array.dtype} {array.shape}", param=self.input)
        return array.astype(np.float32)


def _count(values: Mapping[str, Any], name: str) -> int:
    count = values.get(name, 0)
    if not isinstance(count, int) or count < 0:
        raise EngineRejected(f"{name} counts frames, not {count!r}", param=name)
    return count


def _load(stage: StageSpec) -> Any:
    model = resolve_model(stage.model, stage.revision)
    require_file(model, stage.revision, ("config.json",))
    kind, dtype = (
        _model_class(stage.engine_args.get("model_class", "AutoModel")),
        stage.engine_args.get("dtype", "float32"),
    )
    # Absent encoders are checked below; transformers would report them at every start.
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with loading(model, stage.revision):
            loaded, info = kind.from_pretrained(model, revision=stage.revision, dtype=dtype, output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(level)
    absent = [name for name in info["missing_keys"] if not _is_encoder(name)]
    if absent:
        raise CheckpointMissing(f"the checkpoint {stage.model!r} is incomplete: it lacks {absent[0]}")
    return loaded.eval()


def _is_encoder(name: str) -> bool:
    return name.startswith(ENCODER_ONLY) or ".in_proj." in name


def _model_class(name: Any) -> Any:
    """A class of transformers by its name, or any other as `module:Class`."""
    return load_object(name if ":" in str(name) else f"transformers:{name}", "engine_args.model_class")


def _sample_rate(args: Mapping[str, Any], config: Any) -> int:
    rate = args.get("sample_rate") or getattr(config, "sampling_rate", None) or getattr(config, "sample_rate", None)
    if rate is None:
        raise PipelineError("the model's config names no sampling rate; set it", field="engine_args.sample_rate")
    return int(rate)
