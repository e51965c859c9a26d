"""What of a stage's chunks reaches a caller as sound: the delivered output, checked before it leaves the worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnibus.broker.connection import Connection
from omnibus.client.request_events import ClientEvent, Ended, MediaPiece, Result
from omnibus.media import sound
from omnibus.payloads.memory import HostMemory
from omnibus.payloads.transports import Transports
from omnibus.pipeline.route import EdgeMode
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.wire.request import Request
from tests.support import voices
from tests.support.flow import serving

pytestmark = pytest.mark.integration
_BROKER_ONLY = Transports()
OUTPUTS = {"token_ids": "tokens", "audio": "audio", "sample_rate": "json"}


def spec_of(pipeline: str, voice: str, *others: StageSpec) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="voice", engine="python", model=f"tests.support.voices:{voice}", slots=2,
        engine_args={"outputs": OUTPUTS}, final_output=True, final_output_type="audio",
    )  # fmt: skip
    edges = tuple(EdgeSpec(source=0, target=one.stage_id, mode=EdgeMode.STREAM) for one in others)
    return PipelineSpec(name=pipeline, deadline=30.0, stages=(stage, *others), edges=edges)


async def spoken(
    connection: Connection, spec: PipelineSpec, *modalities: str, transports: Transports = _BROKER_ONLY
) -> tuple[list[MediaPiece], list[ClientEvent], Result]:
    """The pieces of sound of one request, all of its events, and its result."""
    async with serving(connection, spec, ready=15.0, transports=transports) as producer:
        submission = await producer.submit(
            spec, Request(prompt="hello", stream=True, modalities=modalities or ("audio",))
        )
        events = [event async for event in submission.events()]
    (result,) = [event.result for event in events if isinstance(event, Ended)]
    return [event for event in events if isinstance(event, MediaPiece)], events, result


def joined(pieces: list[MediaPiece]) -> np.ndarray:
    assert {piece.values["sample_rate"] for piece in pieces} == {voices.RATE}
    return np.concatenate([piece.values["audio"] for piece in pieces], axis=-1)


@pytest.mark.parametrize("voice", ["tokens_first", "tokens_between", "nan_once", "stereo", "large"])
async def test_the_whole_sound_is_heard_in_pieces_when_chunks_have_more_and_attempts_fail(
    connection: Connection, pipeline: str, voice: str
) -> None:
    voices.attempts.clear()
    pieces, _, result = await spoken(connection, spec_of(pipeline, voice))
    result.raise_for_state()
    whole, rate = sound.decoded(result.outputs[0].items[0])
    heard = np.atleast_2d(joined(pieces))
    assert (rate, heard.shape) == (voices.RATE, whole.shape)
    np.testing.assert_allclose(heard, whole, atol=1e-4)
    assert len(pieces) > 1


@pytest.mark.parametrize(("voice", "why"), [("two_rates", "16000 Hz"), ("two_widths", "2 channels")])
async def test_the_stage_is_named_when_its_sound_does_not_go_on_as_it_began(
    connection: Connection, pipeline: str, voice: str, why: str
) -> None:
    _, _, result = await spoken(connection, spec_of(pipeline, voice))
    assert result.failure is not None
    assert "'voice'" in result.failure.message
    assert why in result.failure.message


async def test_a_caller_hears_the_sound_of_a_flow_that_a_stage_reads_too(connection: Connection, pipeline: str) -> None:
    reader = StageSpec(
        stage_id=1, name="reader", engine="python", model="tests.support.voices:pass_on", input_sources=(0,),
        engine_args={"outputs": {"text": "text"}}, final_output=True, final_output_type="text",
    )  # fmt: skip
    pieces, _, result = await spoken(connection, spec_of(pipeline, "tokens_between", reader), "audio", "text")
    result.raise_for_state()
    assert joined(pieces).shape == (voices.COUNT * voices.RATE // 4,)
    texts = [output for output in result.outputs if output.modality == "text"]
    assert texts[0].text == "sample_rate token_ids;audio sample_rate;" * voices.COUNT


async def test_a_caller_needs_no_memory_of_the_workers_host_when_chunks_are_large(
    connection: Connection, pipeline: str, tmp_path: Path
) -> None:
    """A front door may not even ask the workers for what is there."""
    asked: list[object] = []
    watch = await connection.subscribe(f"omni.{pipeline}.fetch.*", asked.append)
    transports = Transports(memory=HostMemory(pipeline, 64 << 20, tmp_path))
    pieces, _, result = await spoken(connection, spec_of(pipeline, "large"), transports=transports)
    await watch.unsubscribe()
    result.raise_for_state()
    assert joined(pieces).shape == (voices.COUNT * 12 * voices.RATE // 4,)
    assert asked == []
