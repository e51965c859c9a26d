"""A process that writes one long text after the other with a vLLM engine: `python -m tests.support.vllm_text CHECKPOINT`.

It prints `began` once the first is written, then the name of what ended the texts, or `half` for one that is not like the
first, and `gone` once the engine is known to be dead.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import TextDelta
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support.jobs import make_job

LONG = {"temperature": 0.0, "max_tokens": 110, "ignore_eos": True}


async def serve(checkpoint: str) -> None:
    engine = VllmEngine(StageSpec(stage_id=0, name="llm", engine="vllm", model=checkpoint))
    await engine.start()
    print(await _end_of_texts(engine), flush=True)
    await engine.wait_dead()
    print("gone", flush=True)
    await asyncio.Event().wait()


async def _end_of_texts(engine: VllmEngine) -> str:
    first = await _text(engine)
    print("began", flush=True)
    try:
        while await _text(engine) == first:
            pass
    except Exception as error:  # noqa: BLE001 the test asks which
        return type(error).__name__
    return "half"


async def _text(engine: VllmEngine) -> str:
    async with aclosing(engine.generate(make_job(text="draw a red circle", sampling=LONG))) as items:
        return "".join([item.text async for item in items if isinstance(item, TextDelta)])


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
