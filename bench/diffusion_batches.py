"""Images a second of omni-tiny's dit under diffusers, with so many requests in flight, batched and one by one.

`python -m bench.diffusion_batches [--inflight 8] [--requests 64] [--size 64]`; the last line is JSON. Both run in turns in one
process, and the medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import numpy as np
import torch

from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import Request
from omnibus.workers.engines.diffusers.engine import DiffusersEngine
from omnibus.workers.engines.protocol import EngineInput, Finished, Job, StageInput

ROUNDS = 5


async def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--inflight", 8), ("--requests", 64), ("--size", 64)):
        asked.add_argument(name, type=int, default=default)
    options = asked.parse_args()
    torch.set_num_threads(1)
    pixels = options.size * options.size
    engines = {
        name: make_engine(budget, options.inflight) for name, budget in (("one_by_one", 1), ("batched", 1 << 30))
    }
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        await engine.start()
        await images_a_second(engine, options.inflight, options.inflight, options.size)
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            rates[name].append(await images_a_second(engine, options.requests, options.inflight, options.size))
    for engine in engines.values():
        await engine.close()
    found = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    print(json.dumps({"pixels": pixels, "inflight": options.inflight, **found}))


def make_engine(budget: int, slots: int) -> DiffusersEngine:
    return DiffusersEngine(
        StageSpec(
            stage_id=0, name="dit", engine="diffusers", model="package:omnibus.omni_tiny/checkpoints/dit", slots=slots,
            engine_args={"batch_pixels": budget},
        )
    )  # fmt: skip


async def images_a_second(engine: DiffusersEngine, requests: int, inflight: int, size: int) -> float:
    slots, began = asyncio.Semaphore(inflight), time.perf_counter()

    async def one(number: int) -> None:
        async with slots:
            async for item in engine.generate(job(engine, number, size)):
                assert not isinstance(item, Finished) or item.outputs["image"].shape == (1, size, size, 3)

    await asyncio.gather(*(one(number) for number in range(requests)))
    return requests / (time.perf_counter() - began)


def job(engine: DiffusersEngine, number: int, size: int) -> Job:
    width = engine._loaded()._pipeline.transformer.config.caption_channels  # noqa: SLF001 no other place tells it
    states = [np.random.default_rng(number + place).standard_normal((6, width)).astype(np.float32) for place in (0, 9)]
    return Job(
        rid=str(number),
        stage_input=StageInput(rid=str(number), request=Request(prompt="x")),
        engine_input=EngineInput(values=dict(zip(("prompt_embeds", "negative_prompt_embeds"), states, strict=True))),
        sampling={"num_inference_steps": 12, "guidance_scale": 2.0, "height": size, "width": size, "seed": number},
    )


if __name__ == "__main__":
    asyncio.run(main())
