"""The sound of an answer as bytes in the caller's format: as it is made where its stage makes it in pieces, else whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from omnibus.client.request_events import MediaPiece, Output
from omnibus.errors import EngineError
from omnibus.frontdoor.answers import transcoded

if TYPE_CHECKING:
    from omnibus.media.sound import SoundEncoder

_LIGHT = 32 * 1024
"""Bytes of samples that are encoded within 5 ms in any format."""
_UNIT = 6
"""Bytes of which a piece has a multiple, but for the last: whole samples of 16 bits, and base64 without padding."""
PIECE_BYTES = 4096 * _UNIT
"""Bytes of a sound in one event of a stream, 32 KiB as base64: clients have a bound on lines, 64 KiB in aiohttp."""


def pieces_of(sound: bytes) -> list[bytes]:
    """The bytes in pieces that make short lines."""
    return [sound[start : start + PIECE_BYTES] for start in range(0, len(sound), PIECE_BYTES)]


class LiveSound:
    """The first sound of a request. Its pieces come in order, and then its output."""

    def __init__(self, wanted: str) -> None:
        """`wanted` is one of `sound_formats.FORMATS`, or pcm16 for pcm."""
        self._wanted = wanted
        self._stage_id: int | None = None
        self._encoder: SoundEncoder | None = None
        self._rate = 0
        self._left = b""

    def is_of(self, stage_id: int) -> bool:
        """Whether this stage makes the sound: the first one that is asked about does."""
        if self._stage_id is None:
            self._stage_id = stage_id
        return self._stage_id == stage_id

    async def piece(self, piece: MediaPiece) -> bytes:
        """The bytes that a piece brings, maybe none yet; none of another stage's. Raises EngineError for what is no sound."""
        if piece.modality != "audio" or not self.is_of(piece.stage_id):
            return b""
        try:
            # A thread that is asked for a little may be later than that takes; the first piece loads the libraries.
            is_light = self._encoder is not None and piece.values["audio"].nbytes <= _LIGHT
            made = self._left + (self._encoded(piece) if is_light else await asyncio.to_thread(self._encoded, piece))
        except EngineError as error:
            raise EngineError(f"the audio of stage {piece.stage_id}: {error.message}") from error
        ready = len(made) - len(made) % _UNIT
        self._left = made[ready:]
        return made[:ready]

    async def ready(self, output: Output) -> Output:
        """A finished output in the caller's format; of the sound that came in pieces only the bytes that are left."""
        if self._encoder is None or output.modality != "audio" or not self.is_of(output.stage_id):
            return await transcoded(output, audio=self._wanted)
        return replace(output, items=(self._left + await asyncio.to_thread(self._encoder.end),))

    def _encoded(self, piece: MediaPiece) -> bytes:
        from omnibus.media.sound import SoundEncoder  # noqa: PLC0415 only sound loads its libraries, 20 MiB

        samples, rate = piece.values["audio"], piece.values["sample_rate"]
        if self._encoder is None:
            channels = 1 if samples.ndim == 1 else len(samples)
            self._encoder, self._rate = SoundEncoder(rate, channels, self._wanted.removesuffix("16")), rate
        if rate != self._rate:
            raise EngineError(f"a sound that began at {self._rate} Hz was made again at {rate} Hz")
        return self._encoder.write(samples)
