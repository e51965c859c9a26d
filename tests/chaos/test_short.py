"""A few nemeses of `make chaos`, for every change; how fast failovers are is measured there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.__main__ import run
from tests.chaos.nemeses.table import NEMESES, Bounds

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

SEED = 1


async def test_every_accepted_request_ends_once_when_anything_is_killed() -> None:
    chosen = [replace(nemesis, bounds=Bounds()) for nemesis in NEMESES if nemesis.short]
    outcomes = await run(chosen, SEED)
    assert {outcome.nemesis.name: outcome.complaints for outcome in outcomes} == {
        nemesis.name: () for nemesis in chosen
    }
    assert sum(outcome.verdict.done for outcome in outcomes) > 100
