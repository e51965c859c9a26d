"""The model of a preference for the producer's host."""

from __future__ import annotations

import pytest

from bench.locality import Scene, latencies

pytestmark = pytest.mark.unit


def test_preference_moves_less_and_gains_what_the_longer_way_costs() -> None:
    scene = Scene(near=0.0, far=0.1, load=0.3, requests=3000)
    (any_host, far_any), (same_host, far_same) = (latencies(scene, prefers_host=way) for way in (False, True))
    assert 0.4 < far_any < 0.6
    assert far_same < far_any / 3
    assert any_host - same_host == pytest.approx(scene.far * (far_any - far_same), rel=0.5)


def test_preference_gains_nothing_when_both_ways_cost_the_same() -> None:
    scene = Scene(near=0.01, far=0.01, load=0.8, requests=3000)
    any_host, same_host = (latencies(scene, prefers_host=way)[0] for way in (False, True))
    assert any_host == pytest.approx(same_host, rel=1e-6)
