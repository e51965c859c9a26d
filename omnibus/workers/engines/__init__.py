"""Engines, made for a stage. The module of one is imported only where its replica starts; the table is `pipeline.engines`."""

from __future__ import annotations

from omnibus.errors import ConfigError
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Engine, EngineFactory
from omnibus.workers.object_loading import load_object

_METHODS = [name for name, method in vars(Engine).items() if callable(method) and not name.startswith("_")]


def create_engine(stage: StageSpec) -> Engine:
    """The stage's engine, not started.

    Raises ConfigError when there is none of that name or it cannot be imported, PipelineError for arguments that it does not
    take.
    """
    factory: EngineFactory = load_object(engine_kind(stage.engine).factory, "engine")
    engine = factory(stage)
    missing = next((name for name in _METHODS if not callable(getattr(engine, name, None))), None)
    if missing is not None:
        raise ConfigError(
            f"engine {stage.engine!r} has no method {missing!r}: omnibus.workers.engines.protocol.Engine says what it is for"
        )
    return engine
