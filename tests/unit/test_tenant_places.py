"""Places of a front door that its tenants take."""

from __future__ import annotations

import pytest

from omnibus.frontdoor.tenant_places import TenantPlaces

pytestmark = pytest.mark.unit


def test_a_tenant_has_no_more_than_its_places_until_it_leaves_one() -> None:
    places = TenantPlaces(2)
    with places.taken("a") as first, places.taken("a") as second:
        with places.taken("a") as third, places.taken("b") as other:
            assert (first, second, third, other) == (True, True, False, True)
        with places.taken("a") as still:
            assert not still, "one that was refused leaves nothing"
    with places.taken("a") as later:
        assert later


def test_a_place_is_left_when_its_work_fails() -> None:
    places = TenantPlaces(1)
    with pytest.raises(ConnectionError), places.taken("a"):
        raise ConnectionError
    with places.taken("a") as again:
        assert again


def test_callers_without_keys_have_all_places() -> None:
    places = TenantPlaces(1)
    with places.taken(None) as first, places.taken(None) as second:
        assert first
        assert second
