"""Decisions by compare-and-set: made again after a conflict, for as long as a lagging copy may need."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.broker.bucket import transact
from omnibus.errors import RevisionConflict


async def test_decision_is_made_in_the_end_when_the_copy_that_is_read_lags_behind() -> None:
    caught_up = asyncio.get_running_loop().time() + 0.5

    async def attempt() -> str:
        await asyncio.sleep(0)
        if asyncio.get_running_loop().time() < caught_up:
            raise RevisionConflict
        return "decided"

    assert await transact(attempt, "a record") == "decided"


async def test_conflict_is_raised_when_it_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnibus.broker.bucket._LONGEST_PAUSE", 0.0)

    async def attempt() -> None:
        raise RevisionConflict

    with pytest.raises(RevisionConflict, match="a record keeps changing"):
        await transact(attempt, "a record")
