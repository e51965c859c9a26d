"""Failed attempts as somebody who waits for the request reads them."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from omnibus.cli.waiting_report import numbered_attempts
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.admission import new_record
from omnibus.requests.record import Record
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import Request

pytestmark = pytest.mark.unit
SPEC = PipelineSpec(
    name="p",
    stages=(
        StageSpec(stage_id=0, name="writer", engine="sim"),
        StageSpec(
            stage_id=1, name="painter", engine="sim", input_sources=(0,), final_output=True, final_output_type="image"
        ),
    ),
)


def attempt(stage_id: int, task_seq: int, delivery: int, run: int = 1) -> Attempt:
    return Attempt(
        stage_id=stage_id, run=run, task_seq=task_seq, delivery=delivery, at=1.0, code="engine_error", message="broken"
    )


def record(*attempts: Attempt, run: int = 1) -> Record:
    payload = Payload.inline(b"hi", TEXT)
    made = new_record(SPEC, Request(prompt="hi"), rid="r", payload=payload, nonce="n", now=100.0, front="f")
    return replace(made, ticket=replace(made.ticket, run=run), attempts=attempts)


def numbers(of: Record) -> list[tuple[int, int]]:
    return [(one.stage_id, number) for number, one in numbered_attempts(of)]


@pytest.mark.parametrize("seed", range(5))
def test_attempts_are_numbered_by_stage_in_whatever_order_they_were_reported(seed: int) -> None:
    failed = [attempt(0, 7, 1), attempt(0, 7, 2), attempt(1, 9, 1), attempt(1, 9, 2), attempt(1, 9, 3)]
    random.Random(seed).shuffle(failed)
    assert numbers(record(*failed)) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]


def test_an_attempt_without_a_report_counts_when_a_later_delivery_shows_it() -> None:
    assert numbers(record(attempt(0, 7, 1), attempt(0, 7, 4))) == [(0, 1), (0, 4)]


def test_attempts_at_a_task_that_was_published_again_count_on() -> None:
    assert numbers(record(attempt(0, 7, 1), attempt(0, 7, 2), attempt(0, 12, 1))) == [(0, 1), (0, 2), (0, 3)]


def test_attempts_of_an_earlier_run_do_not_count() -> None:
    failed = (attempt(0, 7, 1), attempt(0, 7, 2), attempt(0, 20, 1, run=2))
    assert numbers(record(*failed, run=2)) == [(0, 1)]
