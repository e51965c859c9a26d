"""The façades over real engines: omni-tiny on a cluster, and a checkpoint's folder embedded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import omnibus.omni_tiny
from omnibus import Omni
from omnibus.errors import EngineRejected, InvalidRequest
from tools.omni_tiny.grading import grade_audio, grade_image, grade_text
from tools.serving import Serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(360)]

PROMPTS = ["draw a red circle left of a blue square", "draw a green triangle above a red circle"]
SEEDED = [None, {"seed": 1}, None, None, None]
"""One picture in eighty is wrong without one."""
THINKER = Path(omnibus.omni_tiny.__file__).parent / "checkpoints" / "thinker"


@pytest.fixture(scope="module")
def omni(omni_tiny: Serving) -> Iterator[Omni]:
    """On the omni-tiny that all tests share."""
    with Omni("omni-tiny", nats=omni_tiny.nats_url) as made:
        yield made


def test_offline_prompts_give_text_image_and_audio_in_order(omni: Omni) -> None:
    for prompt, result in zip(PROMPTS, omni.generate(PROMPTS, SEEDED), strict=True):
        result.raise_for_failure()
        image, audio = result.output("image"), result.output("audio")
        assert image is not None
        assert audio is not None
        assert grade_text(prompt, result.text)
        assert grade_image(prompt, image.items[0])
        assert grade_audio(prompt, audio.items[0])
        assert {timing.stage_id for timing in result.timings} == {0, 1, 2, 3}


def test_sampling_params_of_vllm_are_taken_as_they_are(omni: Omni) -> None:
    from vllm import SamplingParams  # noqa: PLC0415 seconds

    params = [SamplingParams(temperature=0.0, max_tokens=3), None, None, None, None]
    (result,) = omni.generate(PROMPTS[0], params, output_modalities=["text"])
    assert (result.outputs[0].usage.completion_tokens, result.finish_reason) == (3, "length")
    params[0] = SamplingParams(temperature=0.0, max_tokens=3, logprobs=2)
    (result,) = omni.generate(PROMPTS[0], params, output_modalities=["text"])
    assert [len(token["top_logprobs"]) for token in result.outputs[0].logprobs or ()] == [2, 2, 2]
    (refused,) = omni.generate(PROMPTS[0], [SamplingParams(n=2), None, None, None, None], output_modalities=["text"])
    with pytest.raises(EngineRejected, match="n must be 1"):
        refused.raise_for_failure()


def test_every_engine_answers_a_call_or_says_why_not(omni: Omni) -> None:
    """Parity: collective_rpc over real engines."""
    answer = omni.collective_rpc("reset_prefix_cache")
    assert [one.stage_id for one in answer.answers] == [0, 1, 2, 3, 4]
    assert [one.stage_id for one in answer.failures] == [1, 3, 4]
    assert list(omni.reset_prefix_cache(stage_ids=[0])) == [True]


def test_vllm_is_paused_and_resumed_without_a_loss(omni: Omni) -> None:
    assert omni.pause_generation("wait").complete
    assert omni.resume_generation().complete
    assert grade_text(PROMPTS[0], omni.generate(PROMPTS[0], output_modalities=["text"])[0].text)


def test_diffusion_sleeps_and_paints_after_waking(omni: Omni) -> None:
    """Parity: sleep and wake_up; engines that cannot are not put to sleep."""
    with pytest.raises(InvalidRequest):
        omni.sleep()  # vLLM on CPU cannot wake up again, so nobody sleeps
    omni.sleep(stage_ids=[1])
    omni.wake_up(stage_ids=[1])
    image = omni.generate(PROMPTS[0], SEEDED, output_modalities=["image"])[0].output("image")
    assert image is not None
    assert grade_image(PROMPTS[0], image.items[0])


def test_folder_of_a_checkpoint_is_served_as_it_is() -> None:
    arguments = {"max_model_len": 128, "max_num_seqs": 4, "kv_cache_memory_bytes": 64 << 20}
    with Omni(str(THINKER), **arguments) as alone:
        assert alone.get_stage_metadata(0).stage_type == "llm"
        (result,) = alone.generate("a red circle", [{"max_tokens": 4, "temperature": 0.0}])
    assert result.outputs[0].usage.completion_tokens in range(1, 5)
