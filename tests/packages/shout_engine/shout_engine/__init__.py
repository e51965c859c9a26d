"""The entry of the engine `shout`: every process reads it, so it imports nothing heavy."""

from omnibus.pipeline.engines import EngineKind

ENGINE = EngineKind(
    name="shout",
    factory="shout_engine.engine:create",
    gives=frozenset({"text"}),
    arguments=frozenset({"mark"}),
    stall_timeout=30.0,
)
