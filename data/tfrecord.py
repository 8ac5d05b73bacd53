"""TFRecord files: records one after the other, each with a checksum of its length and of itself.

    uint64 length | uint32 masked CRC-32C of the length | data | uint32 masked CRC-32C of the data

Little-endian throughout. The lengths form a chain through the file: following it touches a few
bytes per record, and gives random access to what was meant to be read from front to back.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord, "TFRecords format details".
"""

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
OVERHEAD = _HEADER.size + _CHECKSUM.size  # bytes that a record takes beside its data


@dataclass(frozen=True)
class RecordIndex:
    """Where the records of one file are.

    Attributes:
        file: The file.
        offsets: int64 (n,): first byte of each whole record, its length included.
        sizes: int64 (n,): bytes of data of each.
        problem: Why there is no record after the n-th, if the file does not end there as it should.
    """

    file: Path
    offsets: np.ndarray
    sizes: np.ndarray
    problem: str = ""

    def __len__(self) -> int:
        """Number of whole records."""
        return len(self.offsets)

    def read(self, record: int) -> bytes:
        """Returns the data of a record, its checksums verified.

        Raises:
            ValueError: The file has no such record, or it is damaged; names file, record, offset.
        """
        if not 0 <= record < len(self):
            raise ValueError(
                self.problem or f"{self.file} has no record {record}; it has {len(self)}"
            )
        offset, size = int(self.offsets[record]), int(self.sizes[record])
        with self.file.open("rb") as stream:
            stream.seek(offset)
            header, data = stream.read(_HEADER.size), stream.read(size)
            checksum = stream.read(_CHECKSUM.size)
        where = f"{self.file}, record {record} at byte {offset}"
        if len(header) + len(data) + len(checksum) < size + OVERHEAD:
            raise ValueError(f"{where}: the file has become shorter since it was opened")
        if _HEADER.unpack(header) != (size, _masked_crc(header[:8])):
            raise ValueError(f"{where}: the file has changed since it was opened")
        if _CHECKSUM.unpack(checksum)[0] != _masked_crc(data):
            raise ValueError(
                f"{where}: the checksum of its {size} bytes does not match; "
                "the file is damaged, fetch it again"
            )
        return data

    def data_offset(self, record: int) -> int:
        """Returns the first byte of the data of a record."""
        return int(self.offsets[record]) + _HEADER.size


def index_records(file: Path) -> RecordIndex:
    """Returns where the records of a file are, from their lengths alone.

    A file that is cut short or damaged gives the records before that place; asking for one after it
    raises.
    """
    offsets, sizes, problem = [], [], ""
    offset, end = 0, file.stat().st_size
    with file.open("rb", buffering=0) as stream:
        while offset < end:
            header = os.pread(stream.fileno(), _HEADER.size, offset)
            where = f"{file}, record {len(offsets)} at byte {offset}"
            if len(header) < _HEADER.size:
                problem = f"{where}: the file is cut short, it ends at byte {end} within a length"
                break
            size, checksum = _HEADER.unpack(header)
            if checksum != _masked_crc(header[:8]):
                problem = (
                    f"{where}: the checksum of its length does not match; "
                    "the file is damaged here, or no TFRecord file"
                )
                break
            if offset + OVERHEAD + size > end:
                problem = (
                    f"{where}: the file is cut short, the record needs "
                    f"{OVERHEAD + size} bytes and {end - offset} are left; fetch it again"
                )
                break
            offsets.append(offset)
            sizes.append(size)
            offset += OVERHEAD + size
    return RecordIndex(file, np.array(offsets, np.int64), np.array(sizes, np.int64), problem)


def write_records(stream: BinaryIO, records: Iterable[bytes]) -> None:
    """Appends records to an open file."""
    for data in records:
        length = struct.pack("<Q", len(data))
        stream.write(length + _CHECKSUM.pack(_masked_crc(length)))
        stream.write(data)
        stream.write(_CHECKSUM.pack(_masked_crc(data)))


def _masked_crc(data: bytes) -> int:
    """Masked, because a CRC of data that contains CRCs is weak."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
