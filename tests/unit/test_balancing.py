"""Coordinator, balancing: `LoadBalancer`s, `LoadBalancingPolicy`, `build_load_balancer_factory` and `StagePool`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.choice.balancers import (
    LeastQueueLengthBalancer,
    LoadBalancer,
    RandomBalancer,
    RoundRobinBalancer,
    build_load_balancer_factory,
)
from omnibus.registry.choice.director import StagePool
from omnibus.registry.presence.replica_record import ReplicaInfo, ReplicaRecord, ReplicaStatus

pytestmark = pytest.mark.unit
ALL: tuple[Callable[[], LoadBalancer], ...] = (RandomBalancer, RoundRobinBalancer, LeastQueueLengthBalancer)


def replica(number: int, queue_length: int = 0, *, beat: float = 1.0, **fields: object) -> ReplicaInfo:
    return ReplicaInfo(
        stage_id=0, replica=f"r{number}", queue_length=queue_length, last_heartbeat=beat,
        instance=str(fields.get("instance", f"life-{number}")), status=ReplicaStatus(str(fields.get("status", "up"))),
    )  # fmt: skip


def picks(balancer: LoadBalancer, replicas: list[ReplicaInfo], times: int) -> Counter[int]:
    return Counter(balancer.select(None, replicas) for _ in range(times))


@pytest.mark.parametrize("make", ALL)
def test_value_error_when_there_is_no_replica(make: Callable[[], LoadBalancer]) -> None:
    with pytest.raises(ValueError, match="replicas must not be empty"):
        make().select(None, [])


@pytest.mark.parametrize("make", ALL)
def test_only_replica_is_chosen_when_there_is_one(make: Callable[[], LoadBalancer]) -> None:
    assert picks(make(), [replica(0, 5)], 10) == {0: 10}


def test_all_are_chosen_alike_when_random() -> None:
    counted = picks(RandomBalancer(), [replica(0, 9), replica(1), replica(2)], 3000)
    assert all(800 < counted[index] < 1200 for index in range(3))


def test_all_take_turns_when_round_robin() -> None:
    balancer = RoundRobinBalancer()
    three = [replica(number) for number in range(3)]
    assert [balancer.select(None, three) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert balancer.select(None, three[:1]) == 0, "fewer are left: the turn goes on among them"
    assert RoundRobinBalancer(start_index=2).select(None, three) == 2


def test_shortest_queue_is_chosen_when_least_queue_length() -> None:
    assert LeastQueueLengthBalancer().select(None, [replica(0, 4), replica(1, 1), replica(2, 3)]) == 1


def test_ties_are_broken_at_random_when_least_queue_length() -> None:
    two_of_three = [replica(0, 1), replica(1, 5), replica(2, 1)]
    counted = Counter(LeastQueueLengthBalancer().select(None, two_of_three) for _ in range(600))
    assert set(counted) == {0, 2}
    assert all(200 < count < 400 for count in counted.values())


def test_value_error_when_a_queue_length_is_negative() -> None:
    with pytest.raises(ValueError, match="queue_length must be non-negative"):
        LeastQueueLengthBalancer().select(None, [replica(0), replica(1, -1)])


def test_least_queue_length_does_not_herd_between_heartbeats() -> None:
    """Known defect of vLLM-Omni: until the next heartbeat, 5,000 of 5,000 choices fall on one replica."""
    counted = picks(LeastQueueLengthBalancer(), [replica(0, 3), replica(1, 4), replica(2, 4), replica(3, 4)], 5000)
    assert all(1249 <= counted[index] <= 1251 for index in range(4)), counted  # one that is never chosen has no entry


def test_choices_are_forgotten_when_the_next_heartbeat_has_counted_them() -> None:
    balancer = LeastQueueLengthBalancer()
    before = [replica(0, 0), replica(1, 10)]
    assert picks(balancer, before, 5) == {0: 5}
    after = [replica(0, 20, beat=2.0), replica(1, 10)]
    assert picks(balancer, after, 5) == {1: 5}
    assert balancer.select(None, [replica(0, 0, beat=3.0), replica(1, 10)]) == 0, "its five were counted by its beat"


@pytest.mark.parametrize("policy", LoadBalancingPolicy)
def test_every_policy_of_the_table_is_read_from_a_file_and_has_its_balancer(policy: LoadBalancingPolicy) -> None:
    stage = f"{{stage_id: 0, name: s, engine: sim, lb_policy: {policy}, final_output: true, final_output_type: text}}"
    spec = parse_pipeline(f"name: p\nstages: [{stage}]")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=PipelineSpec).stages[0].lb_policy is policy
    if policy.directed:
        assert isinstance(build_load_balancer_factory(policy)(), LoadBalancer)


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (LoadBalancingPolicy.RANDOM, RandomBalancer),
        ("round-robin", RoundRobinBalancer),
        ("least-queue-length", LeastQueueLengthBalancer),
    ],
)
def test_factory_makes_a_new_balancer_each_time(policy: LoadBalancingPolicy | str, kind: type[LoadBalancer]) -> None:
    factory = build_load_balancer_factory(policy)
    one, other = factory(), factory()
    assert type(one) is type(other) is kind
    assert one is not other


def test_factory_names_the_policies_when_it_knows_none_by_a_name() -> None:
    with pytest.raises(ValueError, match=r"'fastest' \(valid: broker, random, round-robin, least-queue-length\)"):
        build_load_balancer_factory("fastest")


@pytest.mark.parametrize("policy", ["broker", "no-such-policy"])
def test_factory_refuses_when_nobody_could_choose(policy: str) -> None:
    with pytest.raises(ValueError, match=policy):
        build_load_balancer_factory(policy)


def test_pool_asks_the_policy_when_there_is_no_affinity() -> None:
    pool = StagePool(RoundRobinBalancer())
    two = [replica(0), replica(1)]
    assert [found.replica for _ in range(4) if (found := pool.pick(two))] == ["r0", "r1", "r0", "r1"]


def test_affinity_goes_before_policy() -> None:
    pool = StagePool(RoundRobinBalancer())
    two = [replica(0), replica(1)]
    chosen = pool.pick(two, affinity="session")
    assert chosen is not None
    assert [pool.pick(two, affinity="session") for _ in range(5)] == [chosen] * 5


def test_affinity_moves_when_its_replica_is_not_up() -> None:
    pool = StagePool(RoundRobinBalancer())
    two = [replica(0), replica(1)]
    chosen = pool.pick(two, affinity="session")
    assert chosen is not None
    left = [replica(n, status="draining" if chosen.replica == f"r{n}" else "up") for n in range(2)]
    moved = pool.pick(left, affinity="session")
    assert moved is not None
    assert moved.replica != chosen.replica


def test_pool_finds_nobody_when_none_is_up() -> None:
    pool = StagePool(RandomBalancer())
    assert pool.pick([]) is None
    assert pool.pick([replica(0, status="error"), replica(1, status="starting")], affinity="a") is None


RECORD = ReplicaRecord(
    stage_id=3, replica="r1", instance="one", status=ReplicaStatus.UP, queue_length=4, host="h", registered_at=1.0,
    last_heartbeat=2.0,
)  # fmt: skip


def test_replica_info_tells_what_the_record_says() -> None:
    info: ReplicaInfo = RECORD
    assert (info.stage_id, info.status, info.queue_length, info.addresses) == (3, "up", 4, ("h",))
    assert (info.registered_at, info.last_heartbeat) == (1.0, 2.0)
