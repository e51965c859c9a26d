"""The places of one front door that its tenants take, of which no tenant has all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class TenantPlaces:
    """Counts what is in hand for each tenant."""

    def __init__(self, most: int) -> None:
        """`most`: places that one tenant has at the same time; without keys there is one alone, which has no bound."""
        self._most, self._taken = most, Counter[str]()

    @contextmanager
    def taken(self, tenant: str | None) -> Iterator[bool]:
        """Take a place for as long as the context lasts; False where the tenant has all of its own already."""
        if tenant is None:
            yield True
        elif self._taken[tenant] >= self._most:
            yield False
        else:
            self._taken[tenant] += 1
            try:
                yield True
            finally:
                self._taken[tenant] -= 1
                self._taken += Counter[str]()  # forgets those at zero
