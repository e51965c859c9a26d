"""The bytes that tenants keep in a store of many small records: summed now and then, as each sum reads all of a tenant's."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from omnibus.files.file_record import QuotaExceeded

KNOWN_FOR = 60.0
"""Seconds after which a tenant's sum is made again: what other processes have stored meanwhile is not in it."""
_MOST_TENANTS = 4096
"""Tenants whose sums are known at the same time; the oldest give way."""


@dataclass(slots=True)
class _Sum:
    nbytes: int
    made: float


class TenantUsage:
    """Sums of one process. Processes that store at the same time may pass the quota together."""

    def __init__(self, quota: int) -> None:
        """`quota`: bytes that a tenant may keep."""
        self._quota = quota
        self._sums: dict[str | None, _Sum] = {}

    async def check(self, tenant: str | None, stored: Callable[[], Awaitable[int]]) -> None:
        """Raises QuotaExceeded where a tenant has no room left; `stored` counts what it has."""
        known = self._sums.get(tenant)
        if known is None or known.made + KNOWN_FOR < time.monotonic():
            known = _Sum(await stored(), time.monotonic())
            self._sums.pop(tenant, None)
            self._sums[tenant] = known
            if len(self._sums) > _MOST_TENANTS:
                del self._sums[next(iter(self._sums))]
        if known.nbytes >= self._quota:
            del self._sums[tenant]  # some may be deleted elsewhere: the next one counts anew
            message = f"the stored responses of a tenant may have {self._quota} bytes together: delete some, or set store: false"
            raise QuotaExceeded(message, param="store")

    def add(self, tenant: str | None, nbytes: int) -> None:
        """Note what was stored, or removed."""
        if (known := self._sums.get(tenant)) is not None:
            known.nbytes += nbytes
