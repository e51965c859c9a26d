"""Sound and pictures in the file format that the caller asked for, whatever a stage has made. Encoding runs in a thread."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from omnibus.client.request_events import Output
from omnibus.errors import EngineError
from omnibus.media import pictures, sound


async def transcoded(output: Output, *, audio: str | None = None, image: str | None = None) -> Output:
    """The output with its files in these formats; an output of another modality, or already in the format, as it is.

    `audio` is one of `sound.FORMATS`, or pcm16 for pcm; `image` is png, jpeg or webp. Raises EngineError for files that
    cannot be read, or that the format cannot hold.
    """
    if output.modality == "audio" and audio is not None:
        wanted, convert = audio.removesuffix("16"), sound.converted
        media_type = sound.FORMATS[wanted].media_type
    elif output.modality == "image" and image is not None:
        wanted, convert, media_type = image, pictures.converted, f"image/{image}"
    else:
        return output
    try:
        items = await asyncio.to_thread(lambda: tuple(convert(item, wanted) for item in output.items))
    except EngineError as error:
        raise EngineError(f"the {output.modality} of stage {output.stage_id}: {error.message}") from error
    return replace(output, media_type=media_type, items=items)
