"""A picture in the making when its replica is killed: another begins it again, and the client sees progress go on."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

from omnibus.client.producer import Producer
from omnibus.client.request_events import ClientEvent, Ended, OutputArrived, StepProgress
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from tests.support import tiny_presets
from tests.support.cluster import Cluster, pipeline_of
from tests.support.runners import Runners

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    # diffusers and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STEPS = 300
PAINTER = """
name: painter
deadline: 200s
heartbeat_timeout: 10s
stages:
- stage_id: 0
  name: sd3
  engine: diffusers
  model: {model}
  final_output: true
  final_output_type: image
  slots: 2
  env: {{OMP_NUM_THREADS: "1"}}
  engine_args: {{pipeline_class: StableDiffusion3Pipeline, device: cpu, dtype: float32}}
  default_sampling_params: {{num_inference_steps: {steps}, guidance_scale: 2.0, height: 32, width: 32, previews: 50, seed: 3}}
"""


async def test_progress_goes_on_and_the_picture_is_the_undisturbed_one_when_its_replica_is_killed(
    tmp_path: Path,
) -> None:
    spec = pipeline_of(
        tmp_path, PAINTER.format(model=tiny_presets.make_stable_diffusion_3(tmp_path / "sd3"), steps=STEPS)
    )
    async with (
        Cluster(tmp_path / "cluster", spec, replicas={0: 2}, ready=200.0) as cluster,
        Runners(cluster.connection, spec.name, cluster.view) as runners,
        Producer(cluster.connection) as producer,
    ):
        whole = await (await producer.submit(spec, Request(prompt="a cat"))).result()
        submission = await producer.submit(spec, Request(prompt="a cat"))
        heard: list[ClientEvent] = []
        killed = False
        async with aclosing(submission.events()) as events:
            async for event in events:
                heard.append(event)
                if not killed and isinstance(event, StepProgress) and event.step > STEPS // 3:
                    await runners.kill(0, submission.rid)
                    killed = True
    progress = [event for event in heard if isinstance(event, StepProgress)]
    steps = [event.step for event in progress]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    assert any(event.preview is not None and event.step > 200 for event in progress)
    (output,) = [event.output for event in heard if isinstance(event, OutputArrived)]
    assert output.items == whole.outputs[0].items
    last = heard[-1]
    assert isinstance(last, Ended)
    assert last.result.state is RequestState.DONE
