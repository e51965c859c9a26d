"""Pictures of a wanted size in bytes, which are pictures: a request with others is refused."""

from __future__ import annotations

import io
import math

from PIL import Image


def bitmap(size: int) -> bytes:
    """The file of a picture that has at least so many bytes."""
    side = math.isqrt(size // 3) + 1
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "BMP")
    return file.getvalue()
