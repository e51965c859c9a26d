"""The steps of a pipeline's call, reported as each class allows: by its callback, the older one, or its progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from omnibus.workers.engines.diffusers.signature import PipelineShape

AfterStep = Callable[[int, int, Any], None]
"""Called with a step's number, how many there are, and the latents where they are known; it may raise to end the call."""


@contextmanager
def reporting(pipeline: Any, shape: PipelineShape, after_step: AfterStep) -> Iterator[dict[str, Any]]:
    """The arguments by which a call of the pipeline reports its steps, while this is open."""
    if "callback_on_step_end" in shape.parameters:
        yield {"callback_on_step_end": _at_step_end(after_step)}
    elif "callback" in shape.parameters:
        yield {"callback": _at_callback(pipeline, after_step), "callback_steps": 1}
    else:
        # A class without a callback still moves its bar.
        pipeline.progress_bar = lambda iterable=None, total=None: _Bar(after_step, iterable, total)
        try:
            yield {}
        finally:
            del pipeline.progress_bar


def _at_step_end(after_step: AfterStep) -> Callable[..., dict[str, Any]]:
    def called(pipeline: Any, step: int, _timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        after_step(step + 1, _total(pipeline, step + 1), state.get("latents"))
        return {}

    return called


def _at_callback(pipeline: Any, after_step: AfterStep) -> Callable[[int, Any, Any], None]:
    def called(step: int, _timestep: Any, latents: Any) -> None:
        after_step(step + 1, _total(pipeline, step + 1), latents)

    return called


def _total(pipeline: Any, least: int) -> int:
    """Steps of the call under way, as far as the pipeline says."""
    known = getattr(pipeline, "num_timesteps", None) or getattr(pipeline, "_num_timesteps", None)
    if known is None:
        timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
        known = 0 if timesteps is None else len(timesteps)
    return max(int(known), least)


class _Bar:
    """A progress bar, as far as pipelines use theirs."""

    def __init__(self, after_step: AfterStep, iterable: Any = None, total: int | None = None) -> None:
        self._after_step, self._iterable = after_step, iterable
        self._total = len(iterable) if total is None else total
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        for one in self._iterable:
            yield one
            self.update()

    def update(self, steps: int = 1) -> None:
        self._step += steps
        self._after_step(self._step, max(self._total, self._step), None)

    def set_description(self, *_: object, **__: object) -> None:
        """A bar's text, which nobody sees."""
