"""Engines by name. A name's module is imported only when a replica of such a stage starts.

Packages elsewhere add engines through the entry point group `omnibus.engines`: name → an EngineFactory.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from omnibus.errors import ConfigError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Engine, EngineFactory
from omnibus.workers.object_loading import load_object

ENTRY_POINTS = "omnibus.engines"

BUILT_IN = {
    "vllm": "omnibus.workers.engines.vllm.engine:create",
    "diffusers": "omnibus.workers.engines.diffusers.engine:create",
    "transformers": "omnibus.workers.engines.transformers.engine:create",
    "python": "omnibus.workers.engines.python:create",
    "sim": "omnibus.workers.engines.sim:create",
}


def create_engine(stage: StageSpec) -> Engine:
    """The stage's engine, not started; raises ConfigError when there is none of that name or it cannot be imported."""
    return _factory(stage.engine)(stage)


def _factory(name: str) -> EngineFactory:
    if name in BUILT_IN:
        factory: EngineFactory = load_object(BUILT_IN[name], "engine")
        return factory
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        raise ConfigError(f"no engine {name!r}; there are {', '.join([*BUILT_IN, *installed])}", param="engine")
    loaded: EngineFactory = installed[name].load()
    return loaded
