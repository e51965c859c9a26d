"""EngineCore that is told to end by others: what it had begun is no result."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import aclosing
from pathlib import Path

import pytest

from omnibus.errors import EngineDead
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Item
from omnibus.workers.engines.vllm.engine import VllmEngine, create
from tests.support import tiny_checkpoints
from tests.support.jobs import make_job
from tests.support.processes import children_of

pytestmark = [
    pytest.mark.e2e,
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
LONG = {"temperature": 0.0, "max_tokens": 110, "ignore_eos": True}


async def test_half_a_text_is_no_result_when_engine_core_is_told_to_end(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoints.make_llm(tmp_path / "llm")
    engine = create(StageSpec(stage_id=0, name="llm", engine="vllm", model=str(checkpoint)))
    await engine.start()
    (core,) = children_of(os.getpid(), "EngineCore")
    try:
        with pytest.raises(EngineDead):
            await interrupted(engine, core)
    finally:
        await engine.close()
        gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


async def interrupted(engine: VllmEngine, core: int) -> list[Item]:
    """What comes after EngineCore got SIGTERM in the middle of a text."""
    async with aclosing(engine.generate(make_job(text="draw a red circle", sampling=LONG))) as items:
        await anext(items)
        os.kill(core, signal.SIGTERM)
        return [item async for item in items]
