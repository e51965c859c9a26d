"""Engines, made for a stage. The module of one is imported only where its replica starts; the table is `pipeline.engines`."""

from __future__ import annotations

from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Engine, EngineFactory
from omnibus.workers.object_loading import load_object


def create_engine(stage: StageSpec) -> Engine:
    """The stage's engine, not started.

    Raises ConfigError when there is none of that name or it cannot be imported, PipelineError for arguments that it does not
    take.
    """
    factory: EngineFactory = load_object(engine_kind(stage.engine).factory, "engine")
    return factory(stage)
