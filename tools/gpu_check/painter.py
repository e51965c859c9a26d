"""A painter that records its calls. Imports diffusers: seconds."""

from __future__ import annotations

import json
import os
import time
from functools import wraps
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from tools.gpu_check.calls import FOLDER


class RecordedPainter(StableDiffusionPipeline):  # type: ignore[misc]
    """Stable Diffusion that writes down when each of its calls began and ended, and how many pictures it made."""

    @wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        result = super().__call__(*args, **kwargs)
        line = {"began": began, "ended": time.monotonic(), "images": len(result[0])}
        with (Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result
