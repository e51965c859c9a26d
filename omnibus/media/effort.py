"""The cost that decoding the files of a request may have, all of them together."""

from __future__ import annotations

import time
from collections.abc import Callable

from omnibus.errors import DeadlineExceeded, RequestTooLarge

DECODED_PIXELS = 1 << 28
"""Pixels of the videos of a request that are decoded to see whether they can be, beyond the first frame of each."""


class Effort:
    """The seconds and the pixels of video that a check may still take; it begins when this is made."""

    def __init__(self, seconds: float, is_left: Callable[[], bool] = lambda: False) -> None:
        self._until, self._is_left = time.monotonic() + seconds, is_left
        self.video_pixels = DECODED_PIXELS

    def poll(self) -> None:
        """Raise RequestTooLarge when the time is over, DeadlineExceeded when nobody waits for the check any more."""
        if self._is_left():
            raise DeadlineExceeded
        if time.monotonic() > self._until:
            raise RequestTooLarge("the request takes too long to decode: send fewer or smaller files")
