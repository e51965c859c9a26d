"""The drawing of a pipeline."""

from __future__ import annotations

import pytest

from omnibus.pipeline.drawing import draw_pipeline
from omnibus.pipeline.loading import parse_pipeline

pytestmark = pytest.mark.unit

OMNI = """
name: omni
deadline: 2m
stages:
  - {stage_id: 0, name: thinker, engine: vllm, model: m, slots: 8, final_output: true, final_output_type: text}
  - {stage_id: 1, name: dit, engine: diffusers, num_replicas: 2, devices: "0,1", input_sources: [0]}
  - {stage_id: 2, name: talker, engine: vllm, input_sources: [0], lb_policy: random}
  - {stage_id: 3, name: voice, engine: python, input_sources: [2], final_output: true, final_output_type: audio}
  - {stage_id: 4, name: mix, engine: python, input_sources: [1, 3], final_output: true, final_output_type: video}
edges:
  - {source: 2, target: 3, forwarding: direct, payload: object}
"""

DRAWN = """\
omni: text, audio, video
lanes interactive · deadline 120 s · heartbeat timeout 10 s · at most 10000 open requests

request
╰──▶ 0 thinker                    vllm m · 1 replica × 8 slots   ⇒ text
     ├──▶ 1 dit                   diffusers · 2 replicas × 1 slot · devices 0,1
     │    ╰──▶ 4 mix ↓
     ╰──▶ 2 talker                vllm · 1 replica × 1 slot · random
          ╰══▶ 3 voice (object)   python · 1 replica × 1 slot   ⇒ audio
               ╰──▶ 4 mix         python · 1 replica × 1 slot · joined with dit   ⇒ video

─▶ forwarded by an orchestrator   ═▶ forwarded by the worker itself
"""


def test_drawing_shows_layers_joins_and_outputs_when_the_graph_branches() -> None:
    assert draw_pipeline(parse_pipeline(OMNI)) == DRAWN


def test_every_entry_hangs_from_the_request_when_there_are_several() -> None:
    spec = parse_pipeline(
        "name: two\nstages:\n"
        "- {stage_id: 0, name: a, engine: sim, final_output: true, final_output_type: text}\n"
        "- {stage_id: 1, name: b, engine: sim, final_output: true, final_output_type: json}\n"
    )
    drawn = draw_pipeline(spec)
    assert "├──▶ 0 a   sim" in drawn
    assert "╰──▶ 1 b   sim" in drawn
