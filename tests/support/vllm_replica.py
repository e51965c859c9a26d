"""A process that runs a vLLM engine until it is killed: `python -m tests.support.vllm_replica CHECKPOINT`."""

from __future__ import annotations

import asyncio
import sys

from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.vllm.engine import VllmEngine


async def serve(checkpoint: str) -> None:
    arguments = {"skip_tokenizer_init": True}
    engine = VllmEngine(StageSpec(stage_id=0, name="orphan", engine="vllm", model=checkpoint, engine_args=arguments))
    await engine.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
