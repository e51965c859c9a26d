"""A codec's or vocoder's decoder under transformers. Imports transformers and torch; everything here blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from omnibus.errors import EngineError, EngineRejected, PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.transformers.decode_batches import DecodeBatches
from omnibus.workers.engines.transformers.loaded_model import load_model, running, sample_rate, whole_number
from omnibus.workers.engines.transformers.parts import Part, Parts


class Decoder:
    """A model that turns codes (or features) into sound.

    `input` of engine_args names the value it takes: `codes`, int (T,) or (K, T), or anything else as float features (T, D).
    `chunk_frames` of them are decoded at a time while a sound comes or leaves in pieces, with `context_frames` on either side.
    Up to `max_batch` sounds, or parts of sounds, are decoded in one call.
    """

    def __init__(self, stage: StageSpec) -> None:
        args = stage.engine_args
        self.input = str(args.get("input", "codes"))
        self._argument = str(args.get("argument", "audio_codes" if self.input == "codes" else self.input))
        self._constants = dict(args.get("method_kwargs", {}))
        self._output = str(args.get("output", "audio_values" if self.input == "codes" else "waveform"))
        self.max_frames = int(args.get("max_frames", 100_000))
        self._first = whole_number(args, "first_frames", 1)
        self._chunk, self._context = whole_number(args, "chunk_frames", 1), whole_number(args, "context_frames", 0)
        self._model = load_model(stage, "AutoModel", only_decodes=True)
        self._decode = getattr(
            self._model, str(args.get("method", "decode" if self.input == "codes" else "forward")), None
        )
        if self._decode is None:
            raise PipelineError(f"{type(self._model).__name__} has no such method", field="engine_args.method")
        self.sample_rate = sample_rate(args, self._model.config)
        self.max_batch = whole_number(args, "max_batch", 1) or 1
        self.batches = DecodeBatches(self.decode, most=self.max_batch, most_frames=self.max_frames)

    def parts(self, *, streams: bool) -> Parts:
        """Collects the frames of one sound: in parts where it `streams`, else all for one part."""
        return Parts(
            1 if self.input == "codes" else 0, self._chunk if streams else None, self._context or 0, first=self._first
        )

    def check(self, values: Mapping[str, Any]) -> np.ndarray:
        """Frames as (K, T) int64 or (T, D) float32; raises EngineRejected for what the decoder cannot take."""
        if self.input not in values:
            raise EngineRejected(f"this stage needs {self.input!r}", param=self.input)
        unknown = sorted(values.keys() - {self.input})
        if unknown:
            raise EngineRejected(f"this stage takes {self.input!r}, not {unknown[0]!r}", param=unknown[0])
        array = np.asarray(values[self.input])
        return self._codes(array) if self.input == "codes" else self._features(array)

    def check_length(self, frames: int) -> None:
        """Raise EngineRejected for a sound of no frames, or of too many."""
        if not 0 < frames <= self.max_frames:
            raise EngineRejected(
                f"{self.input} has {frames} frames; 1 to {self.max_frames} can be decoded", param=self.input
            )

    def decode(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Samples float32 of the own frames of each part, made in one call; their arrays have one shape. Raises EngineError."""
        assert self._decode is not None
        tensor = torch.from_numpy(np.stack([part.array for part in parts])).to(self._model.device)
        if tensor.is_floating_point():
            tensor = tensor.to(self._model.dtype)
        with running(self._model):
            result = self._decode(**{self._argument: tensor}, **self._constants)
        sound = result if isinstance(result, torch.Tensor) else result[self._output]
        if len(parts) > 1 and len(sound) != len(parts):
            raise EngineError(
                f"{type(self._model).__name__} made {len(sound)} sounds of {len(parts)}: it takes no batch"
            )
        rows: np.ndarray = sound.float().cpu().numpy().reshape(len(parts), -1)
        hop = getattr(self._model.config, "hop_length", None)
        return [part.kept(samples, hop) for part, samples in zip(parts, rows, strict=True)]

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
