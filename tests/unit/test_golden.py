"""Messages that were recorded from earlier trees: present code reads each as it was meant.

When the second test fails, the wire has changed. Where earlier processes can go on (a field that is new and has a default), run
`python -m tools.golden_messages` and commit the folder that it makes; never change one that is there. Where they cannot, raise
`VERSION` in `omnibus/wire/envelope.py` first, and say in the changelog that fleets are replaced as a whole; OLDEST follows when
present code does not read earlier messages any more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omnibus.wire import codec
from omnibus.wire.envelope import VERSION
from tools import golden_messages

pytestmark = pytest.mark.unit
OLDEST = 2
"""The first version that present code reads."""
MESSAGES = [file for folder in golden_messages.released() for file in sorted(folder.glob("*.msgpack"))]


def says_the_same(before: Any, now: Any) -> bool:
    """Whether all that a message said is still there; what is new beside it does not matter."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(name in now and says_the_same(value, now[name]) for name, value in before.items())
    if isinstance(before, list) and isinstance(now, list):  # structs that are arrays grow at their ends
        return len(now) >= len(before) and all(map(says_the_same, before, now))
    return bool(before == now)


@pytest.mark.parametrize("file", MESSAGES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_recorded_message_is_read_as_it_was_meant(file: Path) -> None:
    kinds = golden_messages.kinds()
    assert file.stem in kinds, f"{file.stem} is no message any more, and processes of before may still send it"
    found = golden_messages.plain(codec.decode(file.read_bytes(), kinds[file.stem][1]))
    assert says_the_same(json.loads(file.with_suffix(".json").read_text()), found)


def test_present_wire_is_recorded() -> None:
    newest = golden_messages.released()[-1]
    recorded, present = golden_messages.read(newest), golden_messages.encoded()
    changed = sorted(name for name in recorded.keys() | present.keys() if recorded.get(name) != present.get(name))
    assert changed == [], f"{', '.join(changed)}: see the docstring of {Path(__file__).name}"
    assert newest.name.startswith(f"v{VERSION}.")


def test_every_version_that_is_read_is_recorded() -> None:
    versions = {int(one.name[1:].split(".")[0]) for one in golden_messages.released()}
    assert versions == set(range(OLDEST, VERSION + 1))


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ([1], [1, 2], True),
        ([1, 2], [2, 1], False),
    ],
)
def test_comparison_allows_what_is_new_and_nothing_that_is_lost(before: Any, now: Any, same: bool) -> None:
    assert says_the_same(before, now) is same
