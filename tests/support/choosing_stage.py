"""A `python` stage that speaks as it is asked to: in the pitch of a voice, at a speed, in a manner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from omnibus.workers.engines.protocol import StageInput

RATE = 24_000
SECONDS = 0.5


def speak(_stage_input: StageInput, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Half a second of the pitch `hertz` at the `rate` 1; the whispered is quieter."""
    seconds = SECONDS / sampling.get("rate", 1.0)
    loudness = 0.1 if sampling.get("manner") == "whisper" else 0.8
    samples = loudness * np.sin(2 * np.pi * sampling.get("hertz", 300) * np.arange(int(seconds * RATE)) / RATE)
    return {"audio": samples.astype(np.float32), "sample_rate": RATE}
