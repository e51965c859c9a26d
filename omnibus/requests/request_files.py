"""The files of a request, checked before anything is queued: what nobody can decode would fail at every attempt of a stage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from omnibus.errors import DeadlineExceeded, RequestError, RequestTooLarge
from omnibus.wire.request import AudioPart, ImagePart, Message, Part, Request, VideoPart, media_parts

MAX_PIXELS = 64 * 1024 * 1024
"""Pixels of all pictures of a request together: a small file can claim a billion."""
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="check-files")
"""Threads of the process that decode. Invariant: few, as each may hold a picture of MAX_PIXELS."""


async def check_files(request: Request, *, within: float) -> None:
    """Decode the files of a request in a thread, and keep nothing of it.

    Raises InvalidRequest for what cannot be decoded, RequestTooLarge for what is too much, both naming the part, and
    DeadlineExceeded after `within` seconds.
    """
    if request.messages is None or next(media_parts(request.messages), None) is None:
        return
    try:
        async with asyncio.timeout(within):
            await asyncio.get_running_loop().run_in_executor(_THREADS, check_decodable, request.messages)
    except TimeoutError as error:
        raise DeadlineExceeded from error


def check_decodable(messages: Sequence[Message]) -> None:
    """`check_files`, at once: work for a thread. Nothing is unpacked before all that the files claim is within the bounds."""
    from omnibus.media import pictures, sound, video  # noqa: PLC0415 only requests with files load its libraries

    kinds: dict[type[Part], tuple[int, str, Callable[[bytes], int], Callable[[bytes, int], int]]] = {
        ImagePart: (MAX_PIXELS, "pictures of a request may have {} pixels", pictures.pixels, pictures.check),
        AudioPart: (sound.MAX_SAMPLES, "sounds of a request may have {} samples", sound.length, sound.check),
        VideoPart: (video.MAX_FRAMES, "videos of a request may have {} frames", video.length, video.check),
    }
    for is_claim in (True, False):
        left = {kind: most for kind, (most, *_) in kinds.items()}
        for where, part in media_parts(messages):
            most, bound, claimed, check = kinds[type(part)]
            with naming(where):
                left[type(part)] -= claimed(part.data) if is_claim else check(part.data, left[type(part)])
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
