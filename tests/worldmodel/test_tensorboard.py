import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data.tfrecord import index_records
from worldmodel.tensorboard import EventFile, _number

# A record that TensorBoard 2.21's own writer wrote: step 300, loss 0.5 and a/b 2.0.
GOLDEN = bytes.fromhex(
    "0900001040fc54d94110ac022a190a0b0a046c6f7373150000003f0a0a0a03612f621500000040"
)


def read_number(data: bytes) -> tuple[int, bytes]:
    value = 0
    for place, byte in enumerate(data):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, data[place + 1 :]
    raise ValueError("a number without end")


def fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """A protocol buffer as a list of (field number, value)."""
    found: list[tuple[int, int | bytes]] = []
    while message:
        key, message = read_number(message)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, message = read_number(message)
        elif wire == 2:
            size, message = read_number(message)
            value, message = message[:size], message[size:]
        else:
            size = {1: 8, 5: 4}[wire]
            value, message = message[:size], message[size:]
        found.append((field, value))
    return found


def events(file: Path) -> list[dict[int, int | bytes]]:
    index = index_records(file)
    assert not index.problem
    return [dict(fields(index.read(i))) for i in range(len(index))]


def scalars(event: dict[int, int | bytes]) -> dict[str, float]:
    summary = event[5]
    assert isinstance(summary, bytes)
    found = {}
    for field, value in fields(summary):
        assert field == 1 and isinstance(value, bytes)
        tag, number = dict(fields(value))[1], dict(fields(value))[2]
        assert isinstance(tag, bytes) and isinstance(number, bytes)
        (found[tag.decode()],) = struct.unpack("<f", number)
    return found


def test_what_is_written_is_what_tensorboard_itself_writes(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.write(300, {"loss": 0.5, "a/b": 2.0})
    (golden,) = [dict(fields(GOLDEN))]
    version, ours = events(file.path)
    assert version[3] == b"brain.Event:2"
    assert {k: v for k, v in ours.items() if k != 1} == {k: v for k, v in golden.items() if k != 1}
    assert list(ours) == list(golden)
    assert "tfevents" in file.path.name


@settings(deadline=None, max_examples=15)
@given(
    step=st.integers(0, 2**40),
    values=st.dictionaries(st.text(min_size=1), st.floats(width=32, allow_nan=False), max_size=5),
)
def test_values_come_back(tmp_path_factory, step: int, values: dict[str, float]) -> None:
    file = EventFile(tmp_path_factory.mktemp("events"))
    file.write(step, values)
    event = events(file.path)[1]
    assert event[2] == step and scalars(event) == values


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_as_short_as_can_be(value: int) -> None:
    encoded = _number(value)
    assert read_number(encoded) == (value, b"")
    assert len(encoded) == max(1, -(-value.bit_length() // 7))


def test_a_run_that_goes_on_takes_back_later_steps(tmp_path: Path) -> None:
    first = EventFile(tmp_path)
    assert len(events(first.path)) == 1
    second = EventFile(tmp_path, first_step=301)
    _, start = events(second.path)
    assert start[2] == 301 and start[7] == b"\x08\x01"
    assert first.path != second.path and first.path.name < second.path.name


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = EventFile(tmp_path)
    for step in range(1, 6):
        first.write(step, {"loss": 1 / step})
    EventFile(tmp_path, first_step=4).write(4, {"loss": 9.0})
    reader = loader.EventAccumulator(str(tmp_path))
    reader.Reload()
    found = [(event.step, event.value) for event in reader.Scalars("loss")]
    assert [step for step, _ in found] == [1, 2, 3, 4] and found[-1][1] == 9.0
