"""Training curves as TensorBoard reads them, written without TensorBoard itself.

An event file is a TFRecord file of protocol buffers (tensorboard/compat/proto/event.proto and
summary.proto). Of their fields only these are needed:

    Event    1 wall_time: double   2 step: int64   3 file_version: string   5 summary: Summary
             7 session_log: SessionLog {1 status: enum, START = 1}
    Summary  1 value: Value, repeated {1 tag: string   2 simple_value: float}

`tensorboard --logdir runs` shows them; it is a program of 60 MB that nothing here needs.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from worldmodel.data.tfrecord import write_records

_START = b"\x08\x01"
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types


class EventFile:
    """Scalars of one run; a run that goes on writes a file beside the earlier ones.

    Args:
        folder: Where the files are.
        first_step: TensorBoard drops what earlier files say of this step and later ones.
    """

    def __init__(self, folder: Path, *, first_step: int = 1):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self._append(_string(3, "brain.Event:2"))
        if first_step > 1:
            self._append(_varint(2, first_step) + _message(7, _START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the values of a step."""
        summary = b"".join(
            _message(1, _string(1, name) + _key(2, _FLOAT) + struct.pack("<f", value))
            for name, value in values.items()
        )
        self._append(_varint(2, step) + _message(5, summary))

    def _append(self, fields: bytes) -> None:
        event = _key(1, _DOUBLE) + struct.pack("<d", time.time()) + fields
        with self.path.open("ab") as stream:
            write_records(stream, [event])


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _varint(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _number(value)


def _message(field: int, data: bytes) -> bytes:
    return _key(field, _BYTES) + _number(len(data)) + data


def _string(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
