"""What can a stranger do to the decoder? Random damage to real messages, and messages made to hurt.

    python benchmarks/wire_fuzz.py 100000

Every message must be either refused with a `WireError` or decoded into plain values; anything else
ends the run with a traceback. The test suite runs 10 000.
"""

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np

from worldmodel.envs.robots.wire import DTYPES, MAX_MESSAGE_BYTES, WireError, pack, unpack

PLAIN = (dict, list, str, bytes, bool, int, float, np.ndarray, np.generic, type(None))
BAD_DTYPES = ["|O", "O", "<c8", "<c16", "|V8", "|S4", "<U4", "<M8[ns]", "<m8", "<f16", "f4,i4", ""]
BAD_SHAPES: list[Any] = [[-1], [2, -3], [2**63], [2**40, 0], [1.5], ["1"], [True], 3, None, [[1]]]
BAD_SHAPES += [[1] * 5, [1] * 40]


def request(rng: np.random.Generator) -> dict[str, Any]:
    """Returns a message as a robot sends it, with a small image."""
    return {
        "observation/exterior_image_1_left": rng.integers(0, 256, (6, 5, 3), np.uint8),
        "observation/joint_position": rng.normal(size=7) * rng.choice([1, np.nan, np.inf]),
        "observation/gripper_position": np.float32(rng.random()),
        "prompt": "red cube",
        "nested": {"list": [1, -2.5, None, True, b"bytes"]},
    }


def made_to_hurt(rng: np.random.Generator) -> bytes:
    """Returns a message that is wrong in one way a decoder may overlook."""
    array = {b"__ndarray__": True, b"data": bytes(16), b"dtype": "<f4", b"shape": [4]}
    scalar = {b"__npgeneric__": True, b"data": 1, b"dtype": "<i8"}
    kind = rng.integers(10)
    if kind == 0:
        array[b"dtype"] = str(rng.choice(BAD_DTYPES))
    elif kind == 1:
        array[b"shape"] = BAD_SHAPES[rng.integers(len(BAD_SHAPES))]
    elif kind == 2:
        array[b"data"] = [bytes(rng.integers(0, 64)), "text", 3, None, [0] * 16][rng.integers(5)]
    elif kind == 3:
        del array[list(array)[rng.integers(4)]]
    elif kind == 4:
        array[b"more"] = 1
    elif kind == 5:
        scalar[b"dtype"] = str(rng.choice([*BAD_DTYPES, *sorted(DTYPES)]))
        scalar[b"data"] = [2**63, -(2**63), 300, 1e300, "1", None, [1], True][rng.integers(8)]
        return msgpack.packb({"x": scalar})
    elif kind == 6:
        depth = int(rng.integers(5, 3000))
        return b"\x91" * depth + b"\x80"
    elif kind == 7:  # headers that promise far more than there is
        header = [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"][rng.integers(5)]
        return header + rng.bytes(4) + rng.bytes(int(rng.integers(0, 40)))
    elif kind == 8:
        return (
            b"\x81\xa1x"
            + [b"\xd4\x05a", b"\xd6\xff1234", b"\xc7\x08\x01" + bytes(8)][rng.integers(3)]
        )
    else:  # many small parts
        part = [b"\x80", b"\x90", b"\xa0", b"\xc0", b"\xa1x"][rng.integers(5)]
        count = int(rng.integers(500, 60000))
        return b"\xdc" + count.to_bytes(4, "big")[2:] + part * count
    return msgpack.packb({"observation/joint_position": array})


def damaged(message: bytes, rng: np.random.Generator) -> bytes:
    """Returns a real message cut short, or with bytes changed, put in, taken out or doubled."""
    found = bytearray(message)
    kind = rng.integers(5)
    where = int(rng.integers(len(found)))
    if kind == 0:
        return bytes(found[:where])
    for _ in range(int(rng.integers(1, 9))):
        where = int(rng.integers(len(found)))
        if kind == 1:
            found[where] = int(rng.integers(256))
        elif kind == 2:
            found[where:where] = rng.bytes(int(rng.integers(1, 5)))
        elif kind == 3:
            del found[where : where + int(rng.integers(1, 5))]
        else:
            found += found[where : where + 64]
        if not found:
            break
    return bytes(found)


def messages(count: int, seed: int) -> Iterator[bytes]:
    """Yields messages of all kinds; one is larger than allowed."""
    rng = np.random.default_rng(seed)
    yield bytes(MAX_MESSAGE_BYTES + 1)
    for k in range(count - 1):
        if k % 4 == 0:
            yield made_to_hurt(rng)
        elif k % 4 == 1:
            yield rng.bytes(int(rng.integers(0, 200)))
        else:
            yield damaged(pack(request(rng)), rng)


def check_plain(value: Any) -> None:
    """Raises unless a decoded message holds nothing but plain values."""
    if not isinstance(value, PLAIN):
        raise AssertionError(f"decoded a {type(value)}")
    if isinstance(value, np.ndarray):
        assert value.dtype.kind in "biuf" and value.dtype.itemsize <= 8 and value.flags.writeable
        value.tobytes()
    for item in value.values() if isinstance(value, dict) else value if type(value) is list else ():
        check_plain(item)


def fuzz(count: int, seed: int) -> Counter[str]:
    """Returns how often each outcome occurred: a code, or "decoded"."""
    outcomes: Counter[str] = Counter()
    for message in messages(count, seed):
        try:
            value = unpack(message)
        except WireError as error:
            outcomes[error.code] += 1
        else:
            check_plain(value)
            outcomes["decoded"] += 1
    return outcomes


def main() -> None:
    """Runs so many messages as the command line says and prints the outcomes."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for outcome, number in fuzz(count, seed=0).most_common():
        print(f"{number:8d}  {outcome}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = time.perf_counter() - start
    print(f"{count} messages in {seconds:.0f} s, memory grew by {grown / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
