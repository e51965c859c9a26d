"""The record of a video: its way from queued to its end, the time to look again, progress, and remixes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from omnibus.frontdoor.video_jobs.video_record import VideoRecord, VideoStatus, percent, with_prompt
from omnibus.wire.request import ImagePart, Message, Request, TextPart

pytestmark = pytest.mark.unit

NEW = VideoRecord(
    id="video_1", owner=None, pipeline="films", model="films", prompt="a cat", created=100.0, expires=200.0,
    seconds="4", size="64x64",
)  # fmt: skip
PICTURE = ImagePart(data=b"picture")


def test_progress_never_goes_back_when_an_earlier_step_is_seen_later() -> None:
    video = NEW.working(40, 101.0).working(20, 105.0)
    assert (video.status, video.progress, video.started) == (VideoStatus.IN_PROGRESS, 40, 101.0)


def test_completed_video_has_the_length_and_size_of_its_file() -> None:
    video = NEW.working(40, 101.0).completed("2", "32x32", 103.0)
    assert (video.status, video.progress, video.ended) == (VideoStatus.COMPLETED, 100, 103.0)
    assert (video.seconds, video.size, video.started) == ("2", "32x32", 101.0)


@pytest.mark.parametrize("ended", [NEW.completed("2", "32x32", 103.0), NEW.failed("engine_error", "why", 103.0)])
def test_video_stays_as_it_ended_when_another_runner_comes_later(ended: VideoRecord) -> None:
    assert ended.working(50, 104.0) is ended
    assert ended.completed("9", "9x9", 104.0) is ended
    assert ended.failed("other", "else", 104.0) is ended
    assert ended.poll_after(104.0) is None


@pytest.mark.parametrize(
    ("progress", "now", "wait"),
    [
        (0, 110.0, 1000),  # nothing is known
        (50, 104.0, 4000),  # as long again
        (99, 101.0, 250),
        (1, 110.0, 10_000),
    ],
)
def test_wait_until_the_next_look_is_the_time_that_is_left(progress: int, now: float, wait: int) -> None:
    video = replace(NEW, progress=progress, started=100.0, status=VideoStatus.IN_PROGRESS)
    assert video.poll_after(now) == wait


def test_wait_is_the_usual_one_when_nothing_has_begun() -> None:
    assert NEW.poll_after(150.0) == 1000


@pytest.mark.parametrize(
    ("stage_id", "step", "total", "expected"),
    [(7, 0, 10, 0), (7, 5, 10, 25), (7, 20, 10, 50), (3, 1, 2, 75), (3, 10, 10, 99), (3, 1, 0, 99)],
)
def test_stages_share_the_progress_in_the_order_of_the_route(
    stage_id: int, step: int, total: int, expected: int
) -> None:
    assert percent([7, 3], stage_id, step, total) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a cat", "a dog"),
        ((PICTURE, TextPart(text="a cat")), (PICTURE, TextPart(text="a dog"))),
    ],
)
def test_remix_keeps_all_but_the_text(content: object, expected: object) -> None:
    request = Request(messages=(Message(role="user", content=content),), modalities=("video",), tenant="t")  # type: ignore[arg-type]
    remixed = with_prompt(request, "a dog")
    assert remixed.messages == (Message(role="user", content=expected),)  # type: ignore[arg-type]
    assert replace(remixed, messages=request.messages) == request


def test_file_is_found_by_the_id_of_its_video() -> None:
    assert NEW.file_id == "file-1"
