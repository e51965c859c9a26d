"""A loaded diffusion pipeline, and one batch through it. Imports diffusers and torch; everything here blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from omnibus.errors import EngineDead, EngineError, EngineRejected
from omnibus.media import pictures
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.diffusers import pipeline_setup
from omnibus.workers.engines.diffusers.batch_request import PipelineRequest, Stopped, blamed, is_refusal
from omnibus.workers.engines.diffusers.batching import rows_a_call
from omnibus.workers.engines.diffusers.results import Row, outputs_of, rows_of
from omnibus.workers.engines.diffusers.signature import is_mask
from omnibus.workers.engines.diffusers.steps import reporting

Preview = Callable[[int], bytes | None]
"""Renders the row of this number as PNG, None where that row is not being made now."""
OnStep = Callable[[int, int, Preview], bool]
"""Called after each step with its number, how many there are, and what renders a row: whether to go on."""


class DiffusionModel:
    """A pipeline on its device."""

    def __init__(self, stage: StageSpec) -> None:
        self._setup = pipeline_setup.Setup(stage)
        self._pipeline = self._setup.load()
        self.shape = pipeline_setup.shape_of(self._pipeline, stage)
        self._budget: int | None = stage.engine_args.get("batch_pixels")

    def run(self, batch: Sequence[PipelineRequest], on_step: OnStep) -> list[dict[str, Any]]:
        """Outputs of each request of the batch, in order.

        Rows do not influence each other: each has a generator of its own and padding is masked, so that a request's results
        are those it would get alone. Raises Stopped when `on_step` says so, which leaves the pipeline usable, EngineRejected
        for what the pipeline refuses before its first step, EngineDead when the device is lost, else EngineError.
        """
        rows = [(request, seed) for request in batch for seed in request.seeds]
        size = rows_a_call(batch[0].pixels, self._budget) if self.shape.takes_batches and not batch[0].media else 1
        calls = [rows[start : start + (size or len(rows))] for start in range(0, len(rows), size or len(rows))]
        self._choose(batch[0].adapter)
        made: list[Row] = []
        for number, call in enumerate(calls):
            made += self._call(call, _nth(on_step, number, len(calls), len(made), len(call)))
        found, outputs = iter(made), []
        for request in batch:
            own = [next(found) for _ in request.seeds]
            outputs.append(outputs_of(own, fps=request.fps, sample_rate=self.shape.sample_rate))
        return outputs

    def sleep(self) -> None:
        """Move the weights to host memory; raises InvalidRequest where diffusers moves them itself."""
        self._setup.move(self._pipeline, "cpu")

    def wake_up(self) -> None:
        """Move the weights back."""
        self._setup.move(self._pipeline)

    def _call(self, rows: Sequence[tuple[PipelineRequest, int]], on_step: OnStep) -> list[Row]:
        request, started = rows[0][0], False

        def after_step(step: int, total: int, latents: torch.Tensor | None) -> None:
            nonlocal started
            started = True
            if not on_step(step, total, lambda row: None if latents is None else self._preview(latents[row])):
                raise Stopped

        try:
            with (
                torch.inference_mode(),
                self._forgetting(),
                reporting(self._pipeline, self.shape, after_step) as callbacks,
            ):
                result = self._pipeline(**self._arguments(rows), **callbacks)
        except Stopped:
            raise
        except torch.AcceleratorError as error:
            raise EngineDead(f"the device failed: {error}") from error
        except Exception as error:  # pipelines raise whatever their many parts raise
            lacking = self._lacking(request)
            param = blamed(str(error), request, lacking)
            if started or not is_refusal(error, request, param) or isinstance(error, torch.OutOfMemoryError):
                raise EngineError(f"{self.shape.name}: {error}") from error
            no_file = f" was given no {lacking}" if lacking is not None and param == lacking else ""
            raise EngineRejected(f"{self.shape.name}{no_file}: {error}", param=param) from error
        try:
            return rows_of(result, len(rows))
        except EngineError as error:
            raise EngineError(f"{self.shape.name}: {error.message}") from error

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """Clear what a call that did not come to its end has left in caches and on the device, as pipelines do at their end."""
        try:
            yield
        except torch.AcceleratorError:
            raise
        except Exception:
            self._pipeline.maybe_free_model_hooks()
            raise

    def _lacking(self, request: PipelineRequest) -> str | None:
        """The file that the pipeline takes, and that the request does not have."""
        names = (name for kind in ("image", "mask", "video") for name in self.shape.media(kind)[:1])
        return next((name for name in names if name not in request.media), None)

    def _choose(self, adapter: tuple[str, float] | None) -> None:
        if not self.shape.adapters:
            return
        if adapter is None:
            self._pipeline.disable_lora()
            return
        self._pipeline.enable_lora()
        self._pipeline.set_adapters([adapter[0]], [adapter[1]])

    def _arguments(self, rows: Sequence[tuple[PipelineRequest, int]]) -> dict[str, Any]:
        first, is_one = rows[0][0], len(rows) == 1
        # On the host whatever the device: a seed means the same picture everywhere.
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in rows]
        taken, arguments = self.shape.parameters, {**first.shared, **self._tensors([request for request, _ in rows])}
        arguments |= {name: _as_tensor(value) for name, value in first.media.items()}
        arguments |= {"output_type": "np"} if "output_type" in taken else {}
        arguments |= {"generator": generators[0] if is_one else generators} if "generator" in taken else {}
        if first.prompt is not None:
            arguments["prompt"] = first.prompt if is_one else [request.prompt for request, _ in rows]
        # Some pipelines default it to "", and refuse that beside negative embeddings.
        if "negative_prompt" in taken:
            negative = [request.negative_prompt for request, _ in rows]
            arguments["negative_prompt"] = None if negative[0] is None else negative[0] if is_one else negative
        if "use_resolution_binning" in taken:
            arguments["use_resolution_binning"] = False
        return arguments

    def _tensors(self, requests: Sequence[PipelineRequest]) -> dict[str, torch.Tensor]:
        arrays = [(name, array) for request in requests for name, array in request.tensors.items()]
        longest = max((len(array) for name, array in arrays if _is_sequence(name, array)), default=0)
        masked = any(is_mask(name) for name in requests[0].tensors)
        return {
            name: self._stacked(name, [request.tensors[name] for request in requests], longest if masked else None)
            for name in requests[0].tensors
        }

    def _stacked(self, name: str, arrays: Sequence[np.ndarray], length: int | None) -> torch.Tensor:
        if length is not None and _is_sequence(name, arrays[0]):
            arrays = [np.pad(a, [(0, length - len(a)), *[(0, 0)] * (a.ndim - 1)]) for a in arrays]
        tensor = torch.from_numpy(np.stack(arrays)).to(self._pipeline._execution_device)  # noqa: SLF001 also where it offloads
        return tensor if is_mask(name) else tensor.to(self._setup.dtype_of(self._pipeline))

    def _preview(self, latents: torch.Tensor) -> bytes:
        """The image that is in the latents of one row now, as PNG."""
        vae = self._pipeline.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        decoded = vae.decode((latents[None] / vae.config.scaling_factor + shift).to(vae.dtype), return_dict=False)[0]
        image = self._pipeline.image_processor.postprocess(decoded, output_type="np")
        return pictures.encoded((np.asarray(image)[0] * 255).round().astype(np.uint8))


def _nth(on_step: OnStep, number: int, calls: int, before: int, rows: int) -> OnStep:
    """The same for one of several calls, with `rows` rows of its own behind those `before`."""

    def after_step(step: int, total: int, preview: Preview) -> bool:
        own = range(before, before + rows)
        return on_step(number * total + step, calls * total, lambda row: preview(row - before) if row in own else None)

    return after_step


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _is_sequence(name: str, array: np.ndarray) -> bool:
    return array.ndim == 2 or is_mask(name)
