import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data.tfexample import (
    Feature,
    decode_varints,
    encode_example,
    encode_varints,
    parse_example,
)
from worldmodel.data.tfrecord import index_records, write_records

# Another encoder than ours, one value at a time.
_spec = importlib.util.spec_from_file_location(
    "write_rlds", Path(__file__).parent / "formats" / "write_rlds.py"
)
assert _spec is not None and _spec.loader is not None
theirs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(theirs)

RECORDS = [b"first", b"", bytes(range(256)) * 3, b"last"]
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
LISTS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.lists(st.binary(max_size=200), min_size=1, max_size=5)
    | st.lists(FLOAT32, min_size=1, max_size=40)
    | st.lists(INT64, min_size=1, max_size=40),
    max_size=5,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "set.tfrecord"
    file.write_bytes(b"".join(theirs.framed(record) for record in RECORDS))
    return file


def values(feature: Feature) -> list:
    read = {"bytes": feature.values, "float": feature.floats, "int64": feature.ints}
    return list(read[feature.kind]())


def test_records_are_read_in_any_order(file: Path) -> None:
    index = index_records(file)
    assert len(index) == 4 and index.problem == ""
    assert [index.read(k) for k in (3, 1, 0, 2)] == [RECORDS[k] for k in (3, 1, 0, 2)]
    assert index.data_offset(1) == 16 + len(RECORDS[0]) + 12


def test_written_bytes_are_those_of_the_other_encoder(file: Path, tmp_path: Path) -> None:
    with (tmp_path / "ours").open("wb") as stream:
        write_records(stream, RECORDS)
    assert (tmp_path / "ours").read_bytes() == file.read_bytes()


def test_the_published_check_value() -> None:
    # RFC 3720 B.4: the CRC-32C of 32 bytes of zero is 0x8A9136AA.
    crc = 0x8A9136AA
    mask = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert theirs.masked(bytes(32)) == struct.pack("<I", mask)


def test_a_file_cut_anywhere_keeps_its_whole_records(file: Path) -> None:
    whole = file.read_bytes()
    ends = np.cumsum([len(record) + 16 for record in RECORDS])
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        index = index_records(file)
        kept = int((ends <= size).sum())
        assert [index.read(k) for k in range(len(index))] == RECORDS[:kept]
        begin = 0 if kept == 0 else int(ends[kept - 1])
        with pytest.raises(ValueError, match=f"{file.name}.*record {kept}") as error:
            index.read(kept)
        if size > begin:
            assert "cut short" in str(error.value) and f"at byte {begin}" in str(error.value)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_changed_bit_is_ever_read(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    whole = bytearray(b"".join(theirs.framed(record) for record in RECORDS))
    whole[int(place * len(whole))] ^= 1 << bit
    file = tmp_path_factory.getbasetemp() / "flipped.tfrecord"
    file.write_bytes(whole)
    index = index_records(file)
    failed = 0
    for k, record in enumerate(RECORDS):
        try:
            assert index.read(k) == record
        except ValueError as error:
            failed += 1
            assert "flipped.tfrecord, record" in str(error) and "at byte" in str(error)
    assert failed >= 1


def test_a_file_replaced_after_it_was_indexed_is_noticed(file: Path) -> None:
    index = index_records(file)
    file.write_bytes(theirs.framed(b"something else"))
    with pytest.raises(ValueError, match="changed since"):
        index.read(0)
    with pytest.raises(ValueError, match="shorter since"):
        index.read(3)


@given(lists=LISTS, packed=st.booleans())
def test_an_example_is_read_as_it_was_written(lists: dict[str, list], packed: bool) -> None:
    example = parse_example(theirs.example(lists, packed=packed))
    assert {name: values(feature) for name, feature in example.items()} == lists


@given(lists=LISTS)
def test_an_example_is_written_as_the_other_encoder_does(lists: dict[str, list]) -> None:
    arrays = {
        name: v
        if isinstance(v[0], bytes)
        else np.array(v, np.float32 if float in map(type, v) else np.int64)
        for name, v in lists.items()
    }
    assert encode_example(arrays) == theirs.example(lists)


def test_runs_and_single_values_may_alternate() -> None:
    floats = b"\x0d" + struct.pack("<f", 1) + theirs.message(1, struct.pack("<2f", 2, 3))
    ints = theirs.message(1, theirs.varint(300)) + b"\x08" + theirs.varint(-1)
    entry = theirs.message(1, b"f") + theirs.message(2, theirs.message(2, floats))
    other = theirs.message(1, b"i") + theirs.message(2, theirs.message(3, ints))
    data = theirs.message(1, theirs.message(1, entry) + theirs.message(1, other))
    example = parse_example(data)
    assert example["f"].floats().tolist() == [1, 2, 3]
    assert example["i"].ints().tolist() == [300, -1]


def test_unknown_fields_are_skipped() -> None:
    unknown = (
        theirs.varint(9 * 8) + theirs.varint(2**40)
        + theirs.varint(10 * 8 + 1) + bytes(8)
        + theirs.message(11, b"anything")
        + theirs.varint(12 * 8 + 5) + bytes(4)
    )  # fmt: skip
    values_ = theirs.message(1, struct.pack("<f", 7)) + unknown
    feature = unknown + theirs.message(2, values_) + unknown
    entry = unknown + theirs.message(1, b"x") + theirs.message(2, feature)
    data = unknown + theirs.message(1, unknown + theirs.message(1, entry)) + unknown
    assert parse_example(data)["x"].floats().tolist() == [7]


def test_a_feature_without_values() -> None:
    entry = theirs.message(1, theirs.message(1, b"x"))
    feature = parse_example(theirs.message(1, entry))["x"]
    assert feature.kind == "empty"
    assert (len(feature.floats()), len(feature.ints()), len(feature.values())) == (0, 0, 0)


def test_a_list_read_as_another_kind_raises() -> None:
    feature = parse_example(theirs.example({"x": [1.5]}))["x"]
    with pytest.raises(ValueError, match="expected a list of int64, found one of float"):
        feature.ints()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (1, theirs.varint(8) + theirs.varint(5)),  # bytes as a number
        (2, theirs.varint(8 + 1) + bytes(8)),  # a float as a double: not two floats
        (3, theirs.varint(8 + 5) + bytes(4)),  # an integer as a float
    ],
)
def test_a_value_of_another_type_than_its_list_raises(kind: int, content: bytes) -> None:
    entry = theirs.message(1, b"x") + theirs.message(2, theirs.message(kind, content))
    feature = parse_example(theirs.message(1, theirs.message(1, entry)))["x"]
    with pytest.raises(ValueError, match="wire type"):
        values(feature)


def test_floats_do_not_keep_the_message_in_memory() -> None:
    floats = parse_example(theirs.example({"x": [1.5], "image": [bytes(9)]}))["x"].floats()
    assert floats.base is None


@given(numbers=st.lists(INT64 | st.sampled_from([0, 127, 128, 2**63 - 1, -1, -(2**63)])))
def test_integers_round_trip(numbers: list[int]) -> None:
    data = encode_varints(np.array(numbers, np.int64))
    assert data == b"".join(map(theirs.varint, numbers))
    assert decode_varints(data).tolist() == numbers


@pytest.mark.parametrize("data", [b"\x80", b"\x05\x80", b"\xff" * 10 + b"\x01", b"\x80" * 30])
def test_integers_that_do_not_end(data: bytes) -> None:
    with pytest.raises(ValueError, match="does not end|64 bits"):
        decode_varints(data)


def read_all(data: bytes) -> None:
    """Reads every list as everything; any error but ValueError is a bug."""
    try:
        example = parse_example(data)
    except ValueError:
        return
    for feature in example.values():
        for read in (feature.values, feature.floats, feature.ints):
            try:
                read()
            except ValueError:
                pass


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_example_or_a_value_error(data: bytes) -> None:
    read_all(data)
    read_all(
        theirs.message(1, theirs.message(1, theirs.message(1, b"x") + theirs.message(2, data)))
    )
    for kind in (1, 2, 3):
        feature = theirs.message(2, theirs.message(kind, data))
        read_all(theirs.message(1, theirs.message(1, theirs.message(1, b"x") + feature)))


@settings(max_examples=300, deadline=None)
@given(lists=LISTS, data=st.data())
def test_a_damaged_example_is_an_example_or_a_value_error(
    lists: dict[str, list], data: st.DataObject
) -> None:
    message = bytearray(theirs.example(lists))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(message) - 1))
        message[place] = data.draw(st.integers(0, 255))
    read_all(bytes(message[: data.draw(st.integers(0, len(message)))]))


@pytest.mark.filterwarnings("ignore")  # of the library, as it is imported
def test_examples_are_those_of_protobuf() -> None:
    pytest.importorskip("tensorflow_datasets", reason="needs the extra rlds")
    from tensorflow_datasets.proto import tf_example_pb2

    rng = np.random.default_rng(0)
    for _ in range(50):
        arrays = {
            "floats": rng.normal(size=rng.integers(1, 30)).astype(np.float32),
            "ints": rng.integers(-(2**63), 2**63 - 1, rng.integers(1, 30)) >> rng.integers(0, 63),
            "bytes": [rng.bytes(int(n)) for n in rng.integers(0, 3000, 5)],
        }
        message = tf_example_pb2.Example.FromString(encode_example(arrays))
        feature = message.features.feature
        assert feature["floats"].float_list.value == arrays["floats"].tolist()
        assert feature["ints"].int64_list.value == arrays["ints"].tolist()
        assert feature["bytes"].bytes_list.value == arrays["bytes"]
        example = parse_example(message.SerializeToString())
        assert example["floats"].floats().tolist() == arrays["floats"].tolist()
        assert example["ints"].ints().tolist() == arrays["ints"].tolist()
        assert example["bytes"].values() == arrays["bytes"]
