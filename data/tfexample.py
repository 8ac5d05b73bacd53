"""`tf.Example` messages, taken apart without TensorFlow or protobuf.

An Example is a map from names to lists of bytes, of float32 or of int64. Finding the lists costs
one look at each name; what is in a list is read when it is asked for, so that a camera nobody wants
costs nothing.

    message Example   { Features features = 1; }
    message Features  { map<string, Feature> feature = 1; }
    message Feature   { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2;
                                     Int64List int64_list = 3; } }
    message *List     { repeated ... value = 1; }

Source: tensorflow/core/example/{example,feature}.proto, and the encoding of protocol buffers,
https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["bytes", "float", "int64", "empty"]

_KINDS: dict[int, Kind] = {1: "bytes", 2: "float", 3: "int64"}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10  # bytes that 64 bits take, 7 in each


@dataclass(frozen=True)
class Feature:
    """One list of an Example: where it is, not yet what is in it.

    Attributes:
        kind: Of what it is a list; "empty" if the message does not say.
        data: The whole message.
        start: First byte of the list within `data`.
        end: First byte after the list.
    """

    kind: Kind
    data: bytes
    start: int
    end: int

    def ranges(self) -> np.ndarray:
        """Returns where the values of a list of bytes are in `data`, int64 (n, 2): first, end.

        Raises:
            ValueError: It is a list of something else, or malformed.
        """
        self._expect("bytes")
        found = []
        for wire, first, end in self._entries():
            _expect_wire(wire, _LENGTH, "a value of a list of bytes")
            found.append((first, end))
        return np.array(found, np.int64).reshape(-1, 2)

    def values(self) -> list[bytes]:
        """Returns the values of a list of bytes; raises as `ranges`."""
        return [self.data[first:end] for first, end in self.ranges().tolist()]

    def floats(self) -> np.ndarray:
        """Returns a list of floats as float32 (n,).

        Raises:
            ValueError: It is a list of something else, or malformed.
        """
        self._expect("float")
        parts = []
        for wire, first, end in self._entries():
            if wire not in (_LENGTH, _FIXED32):
                raise ValueError(f"a list of floats has a value of wire type {wire}")
            # A copy: a view would keep the whole message, images and all, in memory.
            parts.append(np.frombuffer(self.data[first:end], "<f4").astype(np.float32))
        return _joined(parts, np.float32)

    def ints(self) -> np.ndarray:
        """Returns a list of integers as int64 (n,).

        Raises:
            ValueError: It is a list of something else, or malformed.
        """
        self._expect("int64")
        parts = []
        for wire, first, end in self._entries():
            if wire not in (_LENGTH, _VARINT):
                raise ValueError(f"a list of integers has a value of wire type {wire}")
            parts.append(decode_varints(self.data[first:end]))
        return _joined(parts, np.int64)

    def _expect(self, kind: Kind) -> None:
        if self.kind not in (kind, "empty"):
            raise ValueError(f"expected a list of {kind}, found one of {self.kind}")

    def _entries(self) -> Iterator[tuple[int, int, int]]:
        """Yields wire type, first byte and end of each value, or of each packed run of values."""
        position = self.start
        while position < self.end:
            field, wire, first, position = _next_field(self.data, position, self.end)
            if field == 1:
                yield wire, first, position


def parse_example(data: bytes) -> dict[str, Feature]:
    """Returns the lists of a serialised Example, by name, unread.

    Fields that an Example does not have are skipped; of a name that comes twice the last counts.

    Raises:
        ValueError: The bytes are no Example.
    """
    found: dict[str, Feature] = {}
    for start, end in _messages(data, 0, len(data), field=1):
        for entry_start, entry_end in _messages(data, start, end, field=1):
            name, feature = b"", Feature("empty", data, 0, 0)
            position = entry_start
            while position < entry_end:
                field, wire, first, position = _next_field(data, position, entry_end)
                if field == 1:
                    _expect_wire(wire, _LENGTH, "a name")
                    name = data[first:position]
                elif field == 2:
                    _expect_wire(wire, _LENGTH, "a feature")
                    feature = _feature(data, first, position)
            found[name.decode()] = feature  # a UnicodeDecodeError is a ValueError
    return found


def encode_example(features: Mapping[str, np.ndarray | Sequence[bytes]]) -> bytes:
    """Returns a serialised Example.

    Args:
        features: Name -> floats, integers or truths of any shape, or a list of bytes.
    """
    entries = []
    for name, values in features.items():
        if not isinstance(values, np.ndarray):
            kind, content = 1, b"".join(_message(1, value) for value in values)
        elif values.dtype.kind == "f":
            kind, content = 2, _message(1, values.astype("<f4").tobytes())
        else:
            kind, content = 3, _message(1, encode_varints(values))
        feature = _message(kind, content)
        entries.append(_message(1, _message(1, name.encode()) + _message(2, feature)))
    return _message(1, b"".join(entries))


def decode_varints(data: bytes) -> np.ndarray:
    """Returns the int64 (n,) that lie one after the other, seven bits to a byte, lowest first.

    Raises:
        ValueError: The last one does not end, or one is longer than 64 bits need.
    """
    octets = np.frombuffer(data, np.uint8)
    lasts = np.flatnonzero(octets < 0x80)
    if len(lasts) == len(octets):  # all below 128, as truths and small counts are
        return octets.astype(np.int64)
    if octets[-1] >= 0x80:
        raise ValueError("the last of a list of integers does not end")
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    sizes = lasts - firsts + 1
    if sizes.max() > _MAX_VARINT:
        raise ValueError(f"an integer of {sizes.max()} bytes; 64 bits take {_MAX_VARINT} at most")
    place = np.arange(len(octets)) - np.repeat(firsts, sizes)
    shifted = (octets & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(shifted, firsts).view(np.int64)


def encode_varints(values: np.ndarray) -> bytes:
    """Returns integers or truths of any shape, one after the other, as `decode_varints` reads."""
    encoded = bytearray()
    for value in values.astype(np.int64).ravel().view(np.uint64).tolist():
        while value > 0x7F:
            encoded.append(value & 0x7F | 0x80)
            value >>= 7
        encoded.append(value)
    return bytes(encoded)


def _feature(data: bytes, start: int, end: int) -> Feature:
    feature = Feature("empty", data, end, end)
    position = start
    while position < end:
        field, wire, first, position = _next_field(data, position, end)
        if field in _KINDS:
            _expect_wire(wire, _LENGTH, "a list")
            feature = Feature(_KINDS[field], data, first, position)
    return feature


def _messages(data: bytes, start: int, end: int, *, field: int) -> Iterator[tuple[int, int]]:
    """Yields first byte and end of each message in a field, skipping other fields."""
    position = start
    while position < end:
        found, wire, first, position = _next_field(data, position, end)
        if found == field:
            _expect_wire(wire, _LENGTH, "a message")
            yield first, position


def _next_field(data: bytes, position: int, end: int) -> tuple[int, int, int, int]:
    """Returns number, wire type, first byte and end of the field at `position`."""
    tag, position = _varint(data, position, end)
    field, wire = tag >> 3, tag & 7
    if field == 0:
        raise ValueError("a field with the number 0")
    if wire == _VARINT:
        first = position
        _, position = _varint(data, position, end)
    elif wire == _LENGTH:
        size, first = _varint(data, position, end)
        position = first + size
    elif wire in (_FIXED32, _FIXED64):
        first = position
        position += 4 if wire == _FIXED32 else 8
    else:
        raise ValueError(f"a field of wire type {wire}, which an Example does not use")
    if position > end:
        raise ValueError(f"a field of {position - first} bytes where {end - first} are left")
    return field, wire, first, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Returns the number at `position`, and where it ends."""
    value = 0
    for k in range(_MAX_VARINT):
        if position + k >= end:
            raise ValueError("a number does not end before the message does")
        byte = data[position + k]
        value |= (byte & 0x7F) << 7 * k
        if byte < 0x80:
            return value, position + k + 1
    raise ValueError(f"a number of more than {_MAX_VARINT} bytes")


def _expect_wire(wire: int, expected: int, what: str) -> None:
    if wire != expected:
        raise ValueError(f"{what} has wire type {wire}; expected {expected}")


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])


def _message(field: int, content: bytes) -> bytes:
    head = encode_varints(np.array([field << 3 | _LENGTH, len(content)]))
    return head + content
