"""Values as the bytes of a payload: the same bytes whether in one piece or in several, with large buffers left where they are."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnibus.errors import InvalidRequest
from omnibus.payloads.packing import Packed, _is_light, packed, unpack
from omnibus.wire import codec
from omnibus.wire.payload import BYTES, MSGPACK, TEXT
from tests.support.device_tensors import CudaTensor, DeviceTensor, Tensor, TorchTensor, UnpinnedTensor

pytestmark = pytest.mark.unit

LARGE = np.arange(codec.LARGE // 4, dtype=np.float32)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(), st.binary(max_size=300),
    st.sampled_from([LARGE, LARGE[::2], LARGE.reshape(2, -1).T, LARGE.astype(">f8"), np.array(5), np.zeros((0, 3))]),
    st.just(b"x" * codec.LARGE),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_pieces_are_the_bytes_of_the_whole(value: object) -> None:
    assert b"".join(codec.pack_parts(value)) == codec.pack(value)
    codec.unpack(codec.pack(value))


def test_large_buffers_are_not_copied_when_a_value_is_packed() -> None:
    parts = codec.pack_parts({"a": LARGE, "b": [LARGE, b"y" * codec.LARGE]})
    shared = [
        part
        for part in parts
        if isinstance(part, memoryview) and np.shares_memory(np.frombuffer(part, np.uint8), LARGE)
    ]
    assert len(shared) == 2


def test_arrays_are_not_copied_when_a_value_is_unpacked() -> None:
    data = codec.pack({"a": LARGE})
    found = unpack(data, MSGPACK)["a"]
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    assert not found.flags.writeable


def test_any_library_of_messagepack_reads_the_pieces() -> None:
    data = b"".join(codec.pack_parts({"n": 1, "a": LARGE}))
    found = msgpack.unpackb(data)
    assert (found["n"], found["a"].code) == (1, codec.NUMPY_EXT)
    assert found["a"].data.endswith(LARGE.tobytes())


@pytest.mark.parametrize("kind", [Tensor, TorchTensor, CudaTensor, UnpinnedTensor])
@pytest.mark.parametrize("size", [4, codec.LARGE])
def test_tensor_that_speaks_dlpack_is_sent_as_an_array(size: int, kind: type[Tensor]) -> None:
    array = np.arange(size, dtype=np.int16)
    np.testing.assert_array_equal(codec.unpack(b"".join(codec.pack_parts([kind(array)])))[0], array)


@pytest.mark.parametrize("value", [DeviceTensor(LARGE), object(), np.array([object()]), {"a": {1, 2}}])
def test_what_cannot_be_sent_is_refused_with_what_to_do(value: object) -> None:
    with pytest.raises(TypeError, match="cannot send"):
        codec.pack_parts(value)


@pytest.mark.parametrize(
    ("value", "light"),
    [
        ("short", True), ("x" * 300_000, False), ({"a": np.zeros(10_000_000, np.uint8)}, True),
        ({"a": np.zeros((2000, 2000)).T}, False), (list(range(100_000)), False), ([[0] * 100] * 100, False), ({}, True),
        (dict.fromkeys(range(2000)), False),
    ],
)  # fmt: skip
def test_value_is_packed_on_the_loop_only_when_that_takes_no_time(value: object, light: bool) -> None:
    assert _is_light(value) is light


async def test_values_come_back_as_they_were_given() -> None:
    for value, kind in (("grün", TEXT), (b"\x00", BYTES), ({"a": [1, None]}, MSGPACK), (["x" * 300_000], MSGPACK)):
        given = await packed(value)
        assert given.media_type == kind
        assert unpack(given.joined(), kind) == value


def test_lead_is_what_stands_before_the_first_large_array() -> None:
    given = Packed.of(codec.pack_parts({"name": "n", "b": b"x" * codec.LARGE, "a": LARGE, "c": LARGE}), MSGPACK)
    assert given.joined()[given.lead :].startswith(LARGE.tobytes())
    assert Packed.of((b"x" * codec.LARGE,), BYTES).lead == 0
    assert Packed.of(codec.pack_parts([1, 2]), MSGPACK).nbytes == 3


@pytest.mark.parametrize(
    ("value", "viewed"),
    [
        ({"a": LARGE, "b": [LARGE]}, 2 * LARGE.nbytes), ({"tokens": list(range(100_000))}, 0), (["x" * 300_000], 0),
        ([b"x" * 300_000, LARGE], LARGE.nbytes), (LARGE[:9], 0),
    ],
)  # fmt: skip
def test_only_large_arrays_count_as_unpacked_without_a_copy(value: object, viewed: int) -> None:
    assert Packed.of(codec.pack_parts(value), MSGPACK).viewed == viewed


@pytest.mark.parametrize("data", [b"\xc1", b"\xc7\x04\x01abcd", b"\x81\x01", b"\xff\xff"[:0], b"\x01\x02"])
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unpack(data, MSGPACK)
    with pytest.raises(InvalidRequest):
        unpack(b"\xff", TEXT)
