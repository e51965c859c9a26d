"""Affinity of requests: which replica a key belongs to, and where the key has no effect."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from omnibus.errors import InvalidName, InvalidRequest
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.choice.affinity import favourite
from omnibus.registry.presence.replica_record import ReplicaInfo
from omnibus.requests.admission import digest, new_record
from omnibus.requests.request_checks import validate
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import Request
from tests.support.directed import one_stage

pytestmark = pytest.mark.unit
KEYS = [f"chat-{number}" for number in range(1000)]
FOUR = [ReplicaInfo(stage_id=0, replica=f"r{number}", instance=f"life-{number}") for number in range(4)]


def homes(replicas: list[ReplicaInfo]) -> dict[str, str]:
    return {key: favourite(key, replicas).replica for key in KEYS}


def spec_of(policy: LoadBalancingPolicy) -> PipelineSpec:
    return one_stage("p", policy)


def test_keys_spread_over_all_replicas() -> None:
    counted = Counter(homes(FOUR).values())
    assert all(180 < counted[replica.replica] < 320 for replica in FOUR), counted


def test_only_the_keys_of_a_replica_move_when_it_dies() -> None:
    before, after = homes(FOUR), homes(FOUR[:2] + FOUR[3:])
    moved = {key for key in KEYS if before[key] != after[key]}
    assert moved == {key for key in KEYS if before[key] == "r2"}
    assert {after[key] for key in moved} == {"r0", "r1", "r3"}, "over all that are left"


def test_only_the_newcomers_share_of_keys_moves_when_a_replica_joins() -> None:
    before, after = homes(FOUR[:3]), homes(FOUR)
    moved = {key for key in KEYS if before[key] != after[key]}
    assert {after[key] for key in moved} == {"r3"}
    assert 180 < len(moved) < 320, "one in four"


def test_keys_are_back_when_their_replica_is_restarted() -> None:
    reborn = [*FOUR[:3], ReplicaInfo(stage_id=0, replica="r3", instance="another life")]
    assert homes(reborn[::-1]) == homes(FOUR), "whatever their order"


def test_two_processes_agree_when_they_never_spoke() -> None:
    """Python's own hash differs by process."""
    code = (
        "from tests.unit.test_affinity import KEYS, FOUR; from omnibus.registry.choice.affinity import favourite;"
        "print(*(favourite(key, FOUR).replica for key in KEYS[:50]))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert said.split() == [favourite(key, FOUR).replica for key in KEYS[:50]]


@pytest.mark.parametrize("policy", ["random", "round-robin", "least-queue-length"])
def test_task_carries_the_key_when_its_stage_is_directed(policy: LoadBalancingPolicy) -> None:
    request = Request(prompt="hi", affinity="chat-7")
    record = new_record(
        spec_of(policy), request, rid="r", payload=Payload.inline(b"", TEXT), nonce="n", now=1.0, front=None
    )
    assert record.ticket.affinity == "chat-7"


def test_affinity_is_refused_when_no_stage_is_directed() -> None:
    with pytest.raises(InvalidRequest, match="policy `broker`") as refused:
        validate(spec_of("broker"), Request(prompt="hi", affinity="chat-7"))
    assert refused.value.param == "affinity"


@pytest.mark.parametrize("key", ["", "a b", "a.b", "x" * 65])
def test_affinity_is_refused_when_it_is_no_name(key: str) -> None:
    with pytest.raises(InvalidName) as refused:
        validate(spec_of("random"), Request(prompt="hi", affinity=key))
    assert (refused.value.param, refused.value.http_status) == ("affinity", 400)


def test_request_is_the_same_when_only_its_affinity_differs() -> None:
    assert digest(Request(prompt="hi", affinity="a")) == digest(Request(prompt="hi"))


@pytest.mark.parametrize("engine", ["sim", "python", "diffusers", "transformers"])
def test_media_arguments_are_refused_when_no_engine_processes_media(engine: str) -> None:
    spec = spec_of("broker")
    stages = (type(spec.stages[0])(stage_id=0, name="s0", engine=engine, model="m", final_output=True,
                                   final_output_type="text"),)  # fmt: skip
    asking = Request(prompt="hi", mm_processor_kwargs={"max_pixels": 64})
    with pytest.raises(InvalidRequest, match=engine) as refused:
        validate(PipelineSpec(name="p", stages=stages), asking)
    assert refused.value.param == "mm_processor_kwargs"
    assert digest(asking) != digest(Request(prompt="hi")), "they change the answer"
