"""A process that has started leaves what lives out of its garbage collections, which become rare."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

_SETTLE = """
import gc
from omnibus.garbage import settle_garbage
kept = [[number] for number in range(1000)]
kept.append(kept)
settle_garbage()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
assert gc.get_threshold()[0] >= 10_000
cycle = []
cycle.append(cycle)
del cycle
assert gc.collect() >= 1, "what is made later is still collected"
"""


def test_what_lives_is_never_looked_at_again_when_a_process_has_settled() -> None:
    subprocess.run((sys.executable, "-c", _SETTLE), check=True, timeout=60)
