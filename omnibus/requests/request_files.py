"""The files of a request, checked before anything is queued: what nobody can decode would fail at every attempt of a stage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from omnibus.errors import DeadlineExceeded, OmnibusError, Overloaded, RequestError, RequestTooLarge
from omnibus.wire.request import AudioPart, ImagePart, Message, Part, Request, VideoPart, media_parts

MAX_FILES = 64
MAX_SECONDS = 20.0
"""Seconds that decoding the files of a request may take, its wait for a thread not among them."""
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="check-files")
"""Threads of the process that decode. Invariant: few, as each may hold a large picture or a dozen frames."""
_PLACES = threading.BoundedSemaphore(2 + 32)
"""Requests that are decoded or wait for it. Invariant: a check leaves its place when its thread is done with it, not before."""


def has_files(request: Request) -> bool:
    """Whether there are any to check."""
    return request.messages is not None and next(media_parts(request.messages), None) is not None


async def check_files(request: Request, *, within: float) -> None:
    """Decode the files of a request in a thread, and keep nothing of it.

    Raises InvalidRequest for what cannot be decoded, RequestTooLarge for what is too much, both naming the part, and
    DeadlineExceeded after `within` seconds; Overloaded where too many wait. A check that is left or cancelled stops.
    """
    if request.messages is None or not has_files(request):
        return
    if not _PLACES.acquire(blocking=False):
        raise Overloaded("too many requests wait for their files to be decoded; try again later")
    left = threading.Event()
    work = asyncio.wrap_future(_THREADS.submit(_refusal, request.messages, left.is_set))
    try:  # `wait` cancels nothing: what is queued has its place until a thread has seen that it is left
        await asyncio.wait([work], timeout=within)
    finally:
        left.set()
    if not work.done():
        raise DeadlineExceeded
    if (refusal := work.result()) is not None:
        raise refusal


def _refusal(messages: Sequence[Message], is_left: Callable[[], bool]) -> OmnibusError | None:
    """Check and return the error: one that is raised would be reported where nobody waits for it any more."""
    try:
        check_decodable(messages, is_left)
    except OmnibusError as error:
        return error
    finally:
        _PLACES.release()
    return None


def check_decodable(messages: Sequence[Message], is_left: Callable[[], bool] = lambda: False) -> None:
    """`check_files`, at once: work for a thread. All that the files claim is summed first; opening may decode a frame."""
    from omnibus.media import effort, pictures, sound, video  # noqa: PLC0415 only requests with files load its libraries

    kinds: dict[type[Part], tuple[int, str, Callable[[bytes], int], Callable[[bytes, int, effort.Effort], int]]] = {
        ImagePart: (pictures.MAX_PIXELS, "pictures of a request may have {} pixels", pictures.pixels, pictures.check),
        AudioPart: (sound.MAX_SAMPLES, "sounds of a request may have {} samples", sound.length, sound.check),
        VideoPart: (video.MAX_FRAMES, "videos of a request may have {} frames", video.length, video.check),
    }
    able = effort.Effort(MAX_SECONDS, is_left)
    for is_claim in (True, False):
        left = {kind: most for kind, (most, *_) in kinds.items()}
        for index, (where, part) in enumerate(media_parts(messages)):
            most, bound, claimed, check = kinds[type(part)]
            with naming(where):
                if index >= MAX_FILES:
                    raise RequestTooLarge(f"a request may have {MAX_FILES} files")
                able.poll()
                left[type(part)] -= claimed(part.data) if is_claim else check(part.data, left[type(part)], able)
                if left[type(part)] < 0:
                    raise RequestTooLarge(f"the {bound.format(most)} together")


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Name the part of a request that an error is about."""
    try:
        yield
    except RequestError as error:
        error.param = where
        raise
