"""A pipeline for tests of the façades, and what they need to look at it."""

from __future__ import annotations

from omnibus.client.async_omni_engine import AsyncOmniEngine
from omnibus.client.request_outputs import OmniRequestOutput

PIPELINE = """
name: facade
deadline: 30s
heartbeat_timeout: 2s
lanes: [interactive, batch]
stages:
- {stage_id: 0, name: writer, engine: sim, slots: 8, final_output: true, final_output_type: text,
   default_sampling_params: {tokens: 0},
   engine_args: {outputs: {text: text}, token_rate: 100, hang_on: {rid: ^hang}, reject_on: {rid: ^reject}}}
- {stage_id: 1, name: painter, engine: sim, num_replicas: 2, slots: 4, input_sources: [0], final_output: true,
   final_output_type: image, engine_args: {outputs: {image: image}, steps: 4, latency: 0.02}}
- {stage_id: 2, name: teller, engine: python, model: "tests.support.callable_stage:Callable", slots: 4,
   final_output: true, final_output_type: json, engine_args: {}}
- {stage_id: 3, name: echoer, engine: python, model: "tests.support.callable_stage:Callable", slots: 4,
   input_sources: [2], final_output: true, final_output_type: echo, engine_args: {}}
"""
"""A text whose words come 100 a second, an image of it, and what two further stages in a row were asked with."""


def outputs_of(engine: AsyncOmniEngine, request_id: str, timeout: float = 20.0) -> list[OmniRequestOutput]:
    """All outputs of a request, the last one finished; those of others are passed over."""
    taken: list[OmniRequestOutput] = []
    while not (taken and taken[-1].finished):
        output = engine.try_get_output(timeout)
        assert output is not None, f"no output of {request_id} within {timeout:g} s"
        if output.request_id == request_id:
            taken.append(output)
    return taken
