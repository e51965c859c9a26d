"""Large outputs in storage of the operator's, on a folder and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnibus.errors import BrokerUnavailable, ConfigError, EngineError, PayloadLost
from omnibus.payloads.output_store import OutputStore
from omnibus.payloads.packing import Packed
from omnibus.wire.payload import PNG, StoredOutput

pytestmark = pytest.mark.unit

DATA = Packed.of((b"one" * 50_000, b"two" * 50_000), PNG)


def file_of(output: StoredOutput) -> Path:
    return Path(output.url.removeprefix("file://"))


async def test_output_is_read_where_it_was_written(tmp_path: Path) -> None:
    writing, reading = OutputStore(f"file://{tmp_path}/new"), OutputStore(f"file://{tmp_path}/new/")
    output = await writing.put(DATA, "p", "r")
    assert output.url.startswith(f"file://{tmp_path}/new/p/r/")
    assert bytes(await reading.get(output, DATA.nbytes)) == DATA.joined()
    assert file_of(output).read_bytes() == DATA.joined()


async def test_two_attempts_write_two_outputs() -> None:
    store = OutputStore("memory:///")
    first = await store.put(DATA, "p", "r")
    second = await store.put(Packed.of((b"other",), PNG), "p", "r")
    assert bytes(await store.get(first, DATA.nbytes)) == DATA.joined(), "the answer stays the first one's"
    assert bytes(await store.get(second, 5)) == b"other"


async def test_output_is_lost_when_it_was_removed_or_cut_off(tmp_path: Path) -> None:
    store = OutputStore(f"file://{tmp_path}")
    output = await store.put(DATA, "p", "r")
    file = file_of(output)
    file.write_bytes(b"less")
    with pytest.raises(PayloadLost, match="4 bytes"):
        await store.get(output, DATA.nbytes)
    file.unlink()
    with pytest.raises(PayloadLost, match="gone"):
        await store.get(output, DATA.nbytes)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "{base}/../secret", "{base}/%2e%2e/secret", "s3://other/x"])
async def test_nothing_is_read_outside_the_configured_place(tmp_path: Path, url: str) -> None:
    (tmp_path / "secret").write_text("secret")
    store = OutputStore(f"file://{tmp_path}/outputs")
    with pytest.raises((PayloadLost, BrokerUnavailable)):
        await store.get(StoredOutput(url.format(base=f"file://{tmp_path}/outputs")), 6)


async def test_attempt_fails_when_the_storage_does_not_take_the_output(tmp_path: Path) -> None:
    store = OutputStore(f"file://{tmp_path}/outputs")
    (tmp_path / "outputs" / "p").write_text("a file where a folder belongs")
    with pytest.raises(EngineError, match="cannot be stored"):
        await store.put(DATA, "p", "r")


@pytest.mark.parametrize("url", ["nowhere", "ftp://host/x", ""])
def test_place_is_refused_when_it_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="OMNIBUS_OUTPUT_STORE"):
        OutputStore(url)
