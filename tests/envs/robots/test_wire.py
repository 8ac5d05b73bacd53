import runpy
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from worldmodel.envs.robots import wire
from worldmodel.envs.robots.wire import WireError, pack, unpack

ROOT = Path(__file__).parents[3]

# Written down byte by byte from the published format, not made by our own encoder.
VECTORS = [
    (
        {"x": np.array([1.0], np.float32)},
        b"\x81\xa1x\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x04\x00\x00\x80\x3f"
        b"\xc4\x05dtype\xa3<f4\xc4\x05shape\x91\x01",
    ),
    (
        {"i": np.array([[1, 2, 3]], np.uint8)},
        b"\x81\xa1i\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x03\x01\x02\x03"
        b"\xc4\x05dtype\xa3|u1\xc4\x05shape\x92\x01\x03",
    ),
    (
        {"s": np.int16(-2)},
        b"\x81\xa1s\x83\xc4\x0d__npgeneric__\xc3\xc4\x04data\xfe\xc4\x05dtype\xa3<i2",
    ),
    ({"prompt": "cube", "n": [1, None, True]}, b"\x82\xa6prompt\xa4cube\xa1n\x93\x01\xc0\xc3"),
]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return (
            type(a) is type(b)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        )
    return type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.mark.parametrize("message, data", VECTORS)
def test_the_bytes_are_those_of_the_published_format(message: Any, data: bytes) -> None:
    assert pack(message) == data
    assert same(unpack(data), message)


DTYPES = sorted(name for name in wire.DTYPES if not name.startswith(">"))
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: npst.arrays(
        name, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)
# numpy's float64 is a Python float, and is sent as one.
SCALARS = (
    st.sampled_from([name for name in DTYPES if name != "<f8"])
    .flatmap(lambda name: npst.arrays(name, ()))
    .map(lambda array: array[()])
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    ARRAYS,
    SCALARS,
)
MESSAGES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(MESSAGES)
def test_what_is_packed_comes_back(message: Any) -> None:
    assert same(unpack(pack(message)), message)


def test_arrays_come_back_as_writable_copies_in_native_order() -> None:
    sent = np.arange(6, dtype=">i4").reshape(2, 3).T  # neither native nor contiguous
    found = unpack(pack({"x": sent}))["x"]
    assert found.dtype == np.int32 and found.dtype.isnative
    assert np.array_equal(found, sent)
    found += 1


def raw(message: Any) -> bytes:
    packed = msgpack.packb(message)
    assert packed is not None
    return packed


def array(**changes: Any) -> bytes:
    fields = {"__ndarray__": True, "data": bytes(16), "dtype": "<f4", "shape": [4]} | changes
    return raw({k.encode(): v for k, v in fields.items() if v is not Ellipsis})


def scalar(dtype: Any, data: Any) -> bytes:
    return raw({b"__npgeneric__": True, b"data": data, b"dtype": dtype})


REFUSED = {
    "object dtype": (array(dtype="|O", data=bytes(32)), "bad_dtype"),
    "complex": (array(dtype="<c8", data=bytes(32)), "bad_dtype"),
    "void": (array(dtype="|V4"), "bad_dtype"),
    "structured": (array(dtype="f4,i4", data=bytes(32)), "bad_dtype"),
    "text dtype": (array(dtype="<U1"), "bad_dtype"),
    "long double": (array(dtype="<f16", data=bytes(64)), "bad_dtype"),
    "time": (array(dtype="<M8[ns]", data=bytes(32)), "bad_dtype"),
    "dtype by another name": (array(dtype="float32"), "bad_dtype"),
    "dtype is no text": (array(dtype=["<f4"]), "bad_dtype"),
    "negative shape": (array(shape=[-1]), "bad_shape"),
    "two negatives": (array(shape=[-2, -2]), "bad_shape"),
    "huge shape": (array(shape=[2**62, 4]), "bad_shape"),
    "huge shape of nothing": (array(shape=[2**62, 0], data=b""), "bad_shape"),
    "five dimensions": (array(shape=[1, 1, 1, 1, 4]), "bad_shape"),
    "shape of a bool": (array(shape=[True], data=bytes(4)), "bad_shape"),
    "shape of a float": (array(shape=[4.0]), "bad_shape"),
    "shape is a number": (array(shape=4), "bad_shape"),
    "too few bytes": (array(data=bytes(15)), "bad_shape"),
    "too many bytes": (array(data=bytes(17)), "bad_shape"),
    "text for bytes": (array(data="x" * 16), "bad_shape"),
    "no shape": (array(shape=...), "malformed"),
    "one key more": (array(more=1), "malformed"),
    "not marked": (array(__ndarray__=1), "malformed"),
    "bool of 2": (array(dtype="|b1", data=b"\x00\x01\x02\x01"), "malformed"),
    "scalar object": (scalar("|O", 140), "bad_dtype"),
    "scalar of a list": (scalar("<i8", [1]), "bad_dtype"),
    "scalar of text": (scalar("<f8", "1.0"), "bad_dtype"),
    "scalar too large": (scalar("|u1", 300), "malformed"),
    "truncated": (pack({"x": np.zeros(9)})[:-1], "malformed"),
    "more than one message": (pack({}) + b"\xc0", "malformed"),
    "nothing": (b"", "malformed"),
    "no such byte": (b"\xc1", "malformed"),
    "not utf-8": (b"\xa2\xff\xfe", "malformed"),
    "number as key": (b"\x81\x01\x02", "malformed"),
    "bytes as key": (b"\x81\xc4\x01a\x01", "malformed"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x02", "malformed"),
    "extension": (b"\x81\xa1x\xd4\x05a", "malformed"),
    "empty extension": (b"\xc7\x00\x05", "bad_type"),
    "timestamp": (b"\xd6\xff\x00\x00\x00\x01", "malformed"),
    "long promise": (b"\xdd\xff\xff\xff\xff", "malformed"),
    "deep": (b"\x91" * 9 + b"\xc0", "too_large"),
    "very deep": (b"\x91" * 5000 + b"\xc0", "malformed"),
    "many parts": (b"\x98" + (b"\xdc\x00\x80" + b"\x80" * 128) * 8, "too_large"),
    "long list": (b"\xdc\x04\x01" + b"\xc0" * 1025, "malformed"),
    "long text": (msgpack.packb("x" * (wire.MAX_TEXT_BYTES + 1)), "malformed"),
    "large": (bytes(wire.MAX_MESSAGE_BYTES + 1), "too_large"),
}


@pytest.mark.parametrize("data, code", REFUSED.values(), ids=REFUSED)
def test_a_message_off_the_list_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(WireError) as caught:
        unpack(data)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{code}: ")


@pytest.mark.parametrize(
    "message, code",
    [
        ({"x": np.array([object()])}, "bad_dtype"),
        ({"x": np.array([1j])}, "bad_dtype"),
        ({"x": np.array(["text"])}, "bad_dtype"),
        ({"x": np.longdouble(1)}, "bad_dtype"),
        ({"x": np.zeros((1, 1, 1, 1, 1))}, "bad_shape"),
        ({"x": {1, 2}}, "bad_type"),
        ({"x": 2**64}, "bad_type"),
        ({"x": "\ud800"}, "bad_type"),
        ({"x": np.zeros(wire.MAX_MESSAGE_BYTES, np.uint8)}, "too_large"),
    ],
)
def test_what_is_off_the_list_is_not_sent_either(message: Any, code: str) -> None:
    with pytest.raises(WireError) as caught:
        pack(message)
    assert caught.value.code == code


def test_an_image_as_large_as_any_robot_sends_passes() -> None:
    frames = {f"camera_{k}": np.zeros((720, 1280, 3), np.uint8) for k in range(4)}
    with pytest.raises(WireError, match="too_large"):
        pack(frames)
    frames.pop("camera_3")
    assert same(unpack(pack(frames)), frames)


def test_ten_thousand_hostile_messages_are_refused_or_plain() -> None:
    outcomes = runpy.run_path(str(ROOT / "benchmarks" / "wire_fuzz.py"))["fuzz"](10_000, seed=1)
    assert sum(outcomes.values()) == 10_000
    # Every way out is taken, so the messages do reach every check.
    expected = {"decoded", "malformed", "bad_dtype", "bad_shape", "too_large"}
    assert set(outcomes) == expected, outcomes
    assert min(outcomes[code] for code in expected) > 50, outcomes
