"""The pipelines that are simulated, each as small as its point allows."""

from __future__ import annotations

import random

from msgspec.structs import replace

from omnibus.pipeline.prefill_decode import DECODE, PREFILL
from omnibus.pipeline.route import EdgeMode, Forwarding
from omnibus.pipeline.spec import EdgeSpec, PayloadRule, PipelineSpec, StageSpec

HEARTBEAT = 3.0
"""Lease of a task, virtual seconds."""
DEADLINE = 150.0
ATTEMPTS = 3
SILENCE = 30.0
"""Seconds after which a silent open input counts as deserted."""


EXPAND = "tests.simulation.replicas:beside"


def _stage(
    number: int, *sources: int, final: str | None = None, directed: bool = False, slots: int = 1, bundled: bool = False
) -> StageSpec:
    return StageSpec(
        stage_id=number,
        name=f"s{number}",
        engine="sim",
        stall_timeout=4.0,
        input_sources=sources,
        final_output=final is not None,
        final_output_type=final,
        slots=slots,
        lb_policy="round-robin" if directed else "broker",
        prompt_expand=EXPAND if bundled else None,
    )


def _direct(source: int, target: int) -> EdgeSpec:
    return EdgeSpec(source=source, target=target, forwarding=Forwarding.DIRECT)


def _stored(source: int, target: int, forwarding: Forwarding = Forwarding.ORCHESTRATOR) -> EdgeSpec:
    return EdgeSpec(source=source, target=target, forwarding=forwarding, payload=PayloadRule.OBJECT)


def _stream(source: int, target: int, forwarding: Forwarding = Forwarding.ORCHESTRATOR) -> EdgeSpec:
    return EdgeSpec(source=source, target=target, forwarding=forwarding, mode=EdgeMode.STREAM)


def _pipeline(*stages: StageSpec, edges: tuple[EdgeSpec, ...] = ()) -> PipelineSpec:
    return PipelineSpec(
        name="p", stages=stages, edges=edges, deadline=DEADLINE, heartbeat_timeout=HEARTBEAT, max_attempts=ATTEMPTS
    )


def _sessions(first: StageSpec, *stages: StageSpec, edges: tuple[EdgeSpec, ...] = ()) -> PipelineSpec:
    """One whose first stage takes open inputs, as an engine of this name may."""
    return replace(_pipeline(replace(first, engine="python"), *stages, edges=edges), input_timeout=SILENCE)


def _halves() -> PipelineSpec:
    """A prompt that one stage computes and another continues."""
    prefill, decode = (
        replace(stage, engine="vllm", engine_args={"role": role})
        for stage, role in ((_stage(0), PREFILL), (_stage(1, 0, final="text", slots=2), DECODE))
    )
    return _pipeline(prefill, decode, edges=(_stored(0, 1),))


GRAPHS = {
    "one": _pipeline(_stage(0, final="text")),
    "line": _pipeline(_stage(0), _stage(1, 0, final="text")),
    "stored": _pipeline(_stage(0), _stage(1, 0, final="text"), edges=(_stored(0, 1),)),
    "direct": _pipeline(_stage(0), _stage(1, 0), _stage(2, 1, final="text"), edges=(_direct(0, 1), _direct(1, 2))),
    "join": _pipeline(_stage(0), _stage(1, 0), _stage(2, 0), _stage(3, 1, 2, final="text"), edges=(_stored(1, 3),)),
    "finals": _pipeline(_stage(0, final="text"), _stage(1, 0, final="json"), edges=(_direct(0, 1),)),
    "entries": _pipeline(_stage(0), _stage(1, final="json"), _stage(2, 0, 1, final="text")),
    "bundle": _pipeline(_stage(0, final="text", bundled=True), _stage(1, 0, final="json"), edges=(_stored(0, 1),)),
    "flow": _pipeline(_stage(0), _stage(1, 0, final="text"), edges=(_stream(0, 1),)),
    "flows": _pipeline(
        _stage(0, final="text"),
        _stage(1, 0),
        _stage(2, 1, final="json"),
        edges=(_stream(0, 1), _stream(1, 2, Forwarding.DIRECT)),
    ),
    "session": _sessions(_stage(0, final="text", slots=2)),
    "sessions": _sessions(_stage(0), _stage(1, 0, final="text"), edges=(_stream(0, 1),)),
    "halves": _halves(),
    "directed": _pipeline(_stage(0, slots=2), _stage(1, 0, final="text", directed=True, slots=2)),
}

_NAMES = [name for name in sorted(GRAPHS) for _ in range(1 if name == "directed" else 2)]
"""Half as often the one that needs a registry: heartbeats are most of its events."""


GRAPH_OF_HOLE = {
    "nobody_home": "directed", "two_naks_a_claim": "directed", "unnoticed_claims": "directed",
    "bundles_of_one": "bundle", "companions_of_any_attempt": "bundle",
    "kv_under_one_name": "halves", "notified_what_came": "entries", "workers_end_twice": "direct",
    **dict.fromkeys((
        "flows_without_expected_sequence", "readers_trust_the_bell", "flow_tasks_once", "flows_end_unacknowledged",
        "flows_begun_twice", "forgotten_flows",
    ), "flow"),
    **dict.fromkeys((
        "aborts_by_request",
        "segments_by_number_alone", "segments_without_expected_sequence", "later_attempts_listen_on", "forgotten_inputs",
        "inputs_read_silently",
    ), "session"),
}  # fmt: skip
"""Holes that only one graph can show, and seldom: they are looked for there."""


def in_memory(spec: PipelineSpec) -> PipelineSpec:
    """The same pipeline, with shared memory in the place of the object store, and on every edge that has no rule.

    What stages of an odd number get is durable besides.
    """
    fed = ((source, stage.stage_id) for stage in spec.stages for source in stage.input_sources)
    rules = PayloadRule.SHM, PayloadRule.DURABLE
    edges = (replace(spec.edge(source, target), payload=rules[target % 2]) for source, target in fed)
    return replace(spec, edges=tuple(edges))


def any_graph(rng: random.Random, name: str | None = None) -> tuple[str, PipelineSpec]:
    """The one of a name, any of those above, or now and then any acyclic one of up to five stages with every sink final."""
    if name is not None:
        return name, GRAPHS[name]
    if rng.random() < 0.8:
        name = rng.choice(_NAMES)
        return name, GRAPHS[name]
    count = rng.randint(2, 5)
    sources = [tuple(sorted(rng.sample(range(i), min(i, rng.choice((0, 1, 1, 2)))))) for i in range(count)]
    fed = {source for given in sources for source in given}
    stages = [
        _stage(i, *sources[i], final=f"m{i}" if i not in fed or rng.random() < 0.3 else None) for i in range(count)
    ]
    single = [(given[0], i) for i, given in enumerate(sources) if len(given) == 1]
    edges = tuple(
        rng.choice((_direct, _stored, _stream))(source, target) for source, target in single if rng.random() < 0.6
    )
    return "any", _pipeline(*stages, edges=edges)
