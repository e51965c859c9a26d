"""The video of an answer as an mp4 file that grows, frame by frame, where its stage makes it in pieces."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from omnibus.client.request_events import MediaPiece, Output

if TYPE_CHECKING:
    from omnibus.media.video import VideoEncoder


class LiveVideo:
    """The first video of a request that comes in pieces. They come in order, and then its output."""

    def __init__(self) -> None:
        self._stage_id: int | None = None
        self._encoder: VideoEncoder | None = None
        self._form: tuple[Any, ...] = ()
        self._frames = 0

    async def piece(self, piece: MediaPiece) -> bytes:
        """The bytes that a piece brings, maybe none yet; none of another stage's. Raises EngineError for what is no video."""
        if piece.modality != "video" or self._stage_id not in (None, piece.stage_id):
            return b""
        self._stage_id = piece.stage_id
        return await asyncio.to_thread(self._encoded, piece)

    async def rest(self, output: Output) -> bytes | None:
        """The last bytes of the file; None for an output that did not come in pieces, or not all of it."""
        if self._encoder is None or (output.stage_id, output.modality) != (self._stage_id, "video"):
            return None
        return await asyncio.to_thread(self._end, self._encoder, output)

    def _encoded(self, piece: MediaPiece) -> bytes:
        from omnibus.media.video import VideoEncoder  # noqa: PLC0415 only videos load its libraries

        frames, fps = piece.values["video"], piece.values["fps"]
        form = (*frames.shape[1:3], fps)
        if self._encoder is None:
            self._encoder, self._form = VideoEncoder(frames.shape[2], frames.shape[1], fps), form
        if form != self._form:  # a later attempt made another one: its file comes whole
            return b""
        self._frames += len(frames)
        return self._encoder.write(frames)

    def _end(self, encoder: VideoEncoder, output: Output) -> bytes | None:
        from omnibus.media import video  # noqa: PLC0415 as above

        rest = encoder.end()
        return rest if self._frames == video.length(output.items[0]) else None
