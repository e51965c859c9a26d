"""Which models there are: every deployed pipeline, under its own name or the one it is served by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from omnibus.errors import InvalidRequest, UnknownModel
from omnibus.pipeline.spec import PipelineSpec

ADAPTER_MARK = ":"
"""Between the name of a model and that of an adapter."""


class Pipelines(Protocol):
    """A live view of the deployed pipelines."""

    async def get(self, name: str) -> PipelineSpec | None:
        """The pipeline as it is deployed now; None when there is none. Raises BrokerError when nobody can say."""

    async def all(self) -> Sequence[PipelineSpec]:
        """Every deployed pipeline."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """A pipeline, and the name that the caller has for it."""

    model: str
    spec: PipelineSpec
    adapter: str | None = None
    """The LoRA adapter that the name ends with."""


class ServedModels:
    """Finds the pipeline that a caller means."""

    def __init__(self, pipelines: Pipelines, aliases: Mapping[str, str]) -> None:
        """`aliases` maps names that callers use to pipelines; a pipeline's own name keeps working."""
        self._pipelines, self._aliases = pipelines, dict(aliases)

    async def find(self, model: str | None, *, modality: str | None = None) -> Served:
        """The model of this name, or an adapter of it, MODEL:ADAPTER; without a name the only one (that delivers `modality`).

        Raises UnknownModel, or InvalidRequest when the name is missing and there is a choice.
        """
        if model is None:
            return await self._only(modality)
        if (found := await self._named(model)) is not None:
            return found
        base, _, adapter = model.rpartition(ADAPTER_MARK)
        found = await self._named(base) if base else None
        if found is None:
            known = ", ".join(served.model for served in await self.all()) or "none"
            raise UnknownModel(f"the model {model!r} does not exist; there are: {known}", param="model")
        if adapter not in found.spec.adapters:
            known = ", ".join(found.spec.adapters) or "none"
            raise UnknownModel(f"the model {base!r} has no adapter {adapter!r}; there are: {known}", param="model")
        return replace(found, model=model, adapter=adapter)

    async def all(self) -> list[Served]:
        """Every model, by the name to show: an alias where the pipeline has one. Sorted."""
        specs = {spec.name: spec for spec in await self._pipelines.all()}
        shown = [Served(alias, specs[name]) for alias, name in self._aliases.items() if name in specs]
        aliased = {served.spec.name for served in shown}
        shown += [Served(name, spec) for name, spec in specs.items() if name not in aliased]
        return sorted(shown, key=lambda served: served.model)

    async def pipelines(self, model: str | None = None) -> list[Served]:
        """The pipeline of this name, or every one: each once, by the first of its names. Raises UnknownModel."""
        if model is not None:
            return [await self.find(model)]
        by_pipeline = {served.spec.name: served for served in reversed(await self.all())}
        return sorted(by_pipeline.values(), key=lambda served: served.model)

    async def _named(self, model: str) -> Served | None:
        spec = await self._pipelines.get(self._aliases.get(model, model))
        return Served(model, spec) if spec is not None else None

    async def _only(self, modality: str | None) -> Served:
        able = [served for served in await self.all() if modality is None or modality in served.spec.modalities]
        names = {served.spec.name for served in able}
        if len(names) == 1:
            return able[0]
        known = ", ".join(served.model for served in able) or "none"
        raise InvalidRequest(f"say which model to use; there are: {known}", param="model")
