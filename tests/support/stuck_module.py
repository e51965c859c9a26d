"""A module whose import never ends, as one that waits for a driver."""

from __future__ import annotations

import time

time.sleep(600)
