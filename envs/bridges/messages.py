"""Messages between two Python processes over a pipe: JSON and arrays, nothing that runs code.

A message is the length of its header (4 bytes, big endian), the header (JSON, UTF-8), and the bytes
of its arrays one after another, as the header's entry ``arrays`` lists them: name, dtype, shape.

This file imports the standard library and numpy only, and the server of another environment loads
it by its path.
"""

import json
import struct
from typing import IO

import numpy as np

MAX_HEADER_BYTES = 2**20
MAX_ARRAY_BYTES = 2**28
_DTYPES = ("uint8", "float32", "float64")


def write_message(stream: IO[bytes], fields: dict, arrays: dict[str, np.ndarray]) -> None:
    """Writes one message.

    Args:
        stream: Where to.
        fields: JSON-able, without the key ``arrays``.
        arrays: uint8, float32 or float64, by name.
    """
    solid = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    listed = [[name, str(array.dtype), list(array.shape)] for name, array in solid.items()]
    header = json.dumps({**fields, "arrays": listed}).encode()
    stream.write(struct.pack(">I", len(header)) + header)
    for array in solid.values():
        stream.write(array.tobytes())
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads one message: its fields and its arrays.

    Raises:
        EOFError: The other side closed the pipe.
        ValueError: What came is not a message, for example because the other side printed.
    """
    (length,) = struct.unpack(">I", _read(stream, 4))
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes is no message; did the other side print?")
    fields = json.loads(_read(stream, length))
    arrays = {}
    for name, dtype, shape in fields.pop("arrays"):
        if dtype not in _DTYPES:
            raise ValueError(f"array {name!r} has dtype {dtype!r}; expected one of {_DTYPES}")
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if not 0 <= size <= MAX_ARRAY_BYTES:
            raise ValueError(f"array {name!r} would have {size} bytes, above {MAX_ARRAY_BYTES}")
        arrays[name] = np.frombuffer(bytearray(_read(stream, size)), dtype).reshape(shape)
    return fields, arrays


def _read(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            raise EOFError("the other side closed the pipe")
        data += part
    return data
