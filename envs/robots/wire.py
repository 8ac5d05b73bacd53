"""Messages between robot and planner: msgpack with numpy arrays, as openpi's clients speak it.

An array is a map with bytes keys: ``__ndarray__`` true, ``data`` its bytes in C order, ``dtype``
numpy's ``dtype.str``, ``shape`` a list. A numpy scalar is one with ``__npgeneric__``, ``data`` and
``dtype``. All other maps have str keys.

Whoever reaches the port can send anything, so `unpack` takes what is listed here and nothing else,
before anyone looks at it: numbers of at most 8 bytes in arrays of at most 4 dimensions, and
messages whose size, depth and number of parts are bounded. An object array in particular would be
made of pointers that the sender chose.
"""

import math
from itertools import product
from typing import Any

import msgpack
import numpy as np

MAX_MESSAGE_BYTES = 8 * 2**20
MAX_DEPTH = 8
MAX_CONTAINERS = 512  # maps and lists of one message
MAX_ITEMS = 1024  # of one map or list
MAX_TEXT_BYTES = 64 * 2**10
MAX_NDIM = 4
DTYPES = frozenset(
    ["|b1", "|i1", "|u1"]
    + [f"{o}{k}" for o, k in product("<>", "i2 i4 i8 u2 u4 u8 f2 f4 f8".split())]
)
"""Every ``dtype.str`` that is sent and accepted."""

_ARRAY = frozenset([b"__ndarray__", b"data", b"dtype", b"shape"])
_SCALAR = frozenset([b"__npgeneric__", b"data", b"dtype"])


class WireError(ValueError):
    """A message that is not one of ours.

    Attributes:
        code: a short name such as "too_large" or "bad_dtype", fit to be sent to the peer.
    """

    def __init__(self, code: str, detail: str):
        super().__init__(f"{code}: {detail}")
        self.code = code


def pack(message: Any) -> bytes:
    """Returns the bytes of a message of maps, lists, text, bytes, numbers, None and numpy arrays.

    Raises:
        WireError: it holds something else ("bad_type", "bad_dtype"), or is too large.
    """
    try:
        packed: bytes = msgpack.Packer(default=_encode).pack(message)  # type: ignore[assignment]
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError("bad_type", str(error)) from error
    if len(packed) > MAX_MESSAGE_BYTES:
        raise _too_large(len(packed))
    return packed


def unpack(data: bytes) -> Any:
    """Returns the message in some bytes; its arrays are copies, writable and in native byte order.

    Raises:
        WireError: what was sent is broken, too large, or not on the list.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise _too_large(len(data))
    reader = _Reader()
    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=reader.read_map,
            list_hook=reader.read_list,
            ext_hook=_refuse_extension,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_MESSAGE_BYTES,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise WireError("malformed", str(error) or type(error).__name__) from error
    _check(message, depth=0)
    return message


def _too_large(size: int) -> WireError:
    return WireError("too_large", f"{size} bytes, at most {MAX_MESSAGE_BYTES}; send smaller images")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise WireError("bad_type", f"msgpack extension {code}")


class _Reader:
    """Turns the maps and lists of one message into what they mean, and counts them."""

    def __init__(self) -> None:
        self._containers = 0

    def read_list(self, items: list) -> list:
        self._count()
        return items

    def read_map(self, pairs: list[tuple[Any, Any]]) -> Any:
        self._count()
        found = dict(pairs)
        if len(found) < len(pairs):
            raise WireError("malformed", "a map has a key twice")
        if all(isinstance(key, str) for key in found):
            return found
        if found.keys() == _ARRAY and found[b"__ndarray__"] is True:
            return _decode_array(found[b"dtype"], found[b"shape"], found[b"data"])
        if found.keys() == _SCALAR and found[b"__npgeneric__"] is True:
            return _decode_scalar(found[b"dtype"], found[b"data"])
        raise WireError("malformed", "a map with bytes keys is neither an array nor a scalar")

    def _count(self) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise WireError("too_large", f"more than {MAX_CONTAINERS} maps and lists")


def _encode(value: Any) -> Any:
    """Returns the map of an array or numpy scalar, for msgpack."""
    if not isinstance(value, np.ndarray | np.generic):
        raise WireError("bad_type", f"cannot send a {type(value).__name__}")
    _dtype(value.dtype.str)
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    if value.ndim > MAX_NDIM:
        raise WireError("bad_shape", f"{value.ndim} dimensions, at most {MAX_NDIM}")
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
    }


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError("bad_dtype", f"{name!r:.40} is not one of {', '.join(sorted(DTYPES))}")
    return np.dtype(name)


def _decode_array(name: Any, shape: Any, data: Any) -> np.ndarray:
    dtype = _dtype(name)
    if not isinstance(shape, list) or len(shape) > MAX_NDIM:
        raise WireError("bad_shape", f"expected a list of at most {MAX_NDIM} numbers")
    if not all(type(size) is int and 0 <= size <= MAX_MESSAGE_BYTES for size in shape):
        raise WireError("bad_shape", f"sizes must be whole numbers from 0, got {shape!r:.80}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise WireError("bad_shape", f"shape {shape} of {name} does not fit {size} bytes")
    values = np.frombuffer(data, np.uint8 if dtype.kind == "b" else dtype)
    if dtype.kind == "b" and (values > 1).any():  # no truth value: numpy would misbehave later
        raise WireError("malformed", "a bool is neither 0 nor 1")
    return values.reshape(shape).astype(dtype.newbyteorder("="))


def _decode_scalar(name: Any, value: Any) -> np.generic:
    dtype = _dtype(name).newbyteorder("=")
    wanted = {"b": bool, "i": int, "u": int, "f": float}[dtype.kind]
    if type(value) is not wanted:
        raise WireError("bad_dtype", f"a scalar {name} holds a {type(value).__name__}")
    with np.errstate(over="ignore"):  # a large float64 becomes infinite, as it does in numpy
        return dtype.type(value)


def _check(value: Any, *, depth: int) -> None:
    """Refuses values of other types, such as msgpack's timestamps, and deep messages."""
    if depth > MAX_DEPTH:
        raise WireError("too_large", f"more than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for item in value.values():
            _check(item, depth=depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth=depth + 1)
    elif not isinstance(value, str | bytes | bool | int | float | np.ndarray | np.generic | None):
        raise WireError("bad_type", f"a {type(value).__name__}")
