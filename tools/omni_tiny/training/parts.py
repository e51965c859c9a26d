"""The parts of omni-tiny, in the order of their training. Imports no torch until a part is trained."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ORDER = ("vae", "thinker", "code2wav", "talker", "dit")
NEEDS: Mapping[str, tuple[str, ...]] = {"dit": ("vae", "thinker")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Notes of one training for the model card."""

    seconds: float
    loss: float
    steps: int


def train_part(part: str, out: Path) -> Trained:
    """Train one part into its folder under `out`, in this process."""
    training = importlib.import_module(f"tools.omni_tiny.training.{part}")
    trained: Trained = training.train_into(out)
    return trained
