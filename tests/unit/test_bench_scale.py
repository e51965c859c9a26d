"""The simulation of many replicas reproduces what was measured, and says what gives way first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.scale.__main__ import AS_IT_IS, share, study
from bench.scale.cluster import Cluster, Outcome, Shape
from bench.scale.costs import Costs, measured
from bench.scale.points import fitted, points

pytestmark = pytest.mark.unit
LATENCY_ERROR, RATE_ERROR = 0.20, 0.10
"""Parts of the measured figure, as docs/guide/scale.md states them."""


@pytest.fixture(scope="module")
def costs() -> Costs:
    return fitted(measured(), requests=300)


def test_measured_points_are_reproduced_within_the_stated_error(costs: Costs) -> None:
    found = points(measured(), costs, requests=300)
    assert len(found) > 4, "both ways of forwarding, and at least one number of replicas"
    for point in found:
        assert abs(point.error) <= (LATENCY_ERROR if "p50" in point.name else RATE_ERROR), point


def test_a_seed_gives_the_same_outcome_again_and_another_one_another(costs: Costs) -> None:
    def run(seed: int) -> Outcome:
        return Cluster(Shape(stages=2, replicas=3, slots=2, latency=0.01, spread=True), costs, seed).load(12, 60)

    assert run(1) == run(1)
    assert run(1).latencies != run(2).latencies


def test_cpu_of_a_request_is_the_measured_one_when_many_are_in_flight(costs: Costs) -> None:
    busy = Cluster(Shape(cores=2), costs, 1).load(64, 300)
    for role, milliseconds in measured()["hops"]["cpu_ms"].items():
        assert busy.used[role] / len(busy.latencies) * 1000 == pytest.approx(milliseconds, rel=0.1)


def test_one_stream_gives_way_first_and_several_do_not(costs: Costs) -> None:
    many = replace(AS_IT_IS, replicas=200)
    one = Cluster(many, costs, 1).load(720, 900)
    several = Cluster(replace(many, streams=8), costs, 1).load(720, 900)
    assert one.used["broker"] / one.seconds > 0.9
    assert share(600, one) < 0.7 < share(600, several)


def test_all_shapes_do_what_their_engines_can_when_replicas_are_few(costs: Costs) -> None:
    for each in study(costs, 1, [30], 0.5).values():
        assert share(30, each[30]) > 0.85
