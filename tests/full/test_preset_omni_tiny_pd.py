"""The preset `omni-tiny-pd`, served whole: what its two halves of a thinker write is what one engine alone writes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnibus import Omni
from omnibus.pipeline.loading import load_pipeline
from omnibus.wire.request import Message
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support.jobs import make_job, run_job
from tools.omni_tiny.grading import grade_audio, grade_image, grade_text
from tools.omni_tiny.grammar import sample_prompts
from tools.serving import serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
PROMPTS = sample_prompts(6, seed=11, held_out=True)


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Omni]:
    folder: Path = tmp_path_factory.mktemp("omni-tiny-pd")
    with (
        serving("omni-tiny-pd", "--port", "0", "--nats-port", "0", state_dir=folder) as server,
        Omni("omni-tiny-pd", nats=server.nats_url) as made,
    ):
        yield made


async def texts_of_one_engine() -> list[str]:
    """The greedy texts of omni-tiny's own thinker."""
    stage = load_pipeline("omni-tiny").stage(0)
    engine = VllmEngine(stage)
    await engine.start()
    try:
        jobs = [
            make_job(f"whole-{number}", stage.default_sampling_params, messages=(Message(role="user", content=prompt),))
            for number, prompt in enumerate(PROMPTS)
        ]
        return [str(last.outputs["text"]) for _, last in await asyncio.gather(*(run_job(engine, job) for job in jobs))]
    finally:
        await engine.close()


def test_texts_are_those_of_one_engine_and_pictures_and_voices_are_right(omni: Omni) -> None:
    stages = load_pipeline("omni-tiny-pd").stages
    results = omni.generate(PROMPTS, [{"seed": 1} if stage.name == "dit" else None for stage in stages])
    for prompt, result in zip(PROMPTS, results, strict=True):
        result.raise_for_failure()
        image, audio = result.output("image"), result.output("audio")
        assert image is not None
        assert audio is not None
        assert grade_text(prompt, result.text)
        assert grade_image(prompt, image.items[0])
        assert grade_audio(prompt, audio.items[0])
        assert {timing.stage_id for timing in result.timings} == {0, 1, 2, 3, 5}
    assert [result.text for result in results] == asyncio.run(texts_of_one_engine())
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector
