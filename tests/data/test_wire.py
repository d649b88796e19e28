"""The wire format at the edges of its lengths and numbers."""

import numpy as np
import pytest

from spatialvla_ft.bench.small_rlds import example, message, varint
from spatialvla_ft.data import DatasetError
from spatialvla_ft.data.rlds.wire import parse_example

EDGES = (0, 1, 127, 128, 129, 16383, 16384, 16385, 2**21 - 1, 2**21, 2**21 + 1)


def test_byte_strings_of_every_length_of_length():
    rng = np.random.default_rng(0)
    texts = [rng.bytes(size) for size in EDGES]
    data = example({"a": texts, "b": [b"end"]})
    found = parse_example(data)
    spans = zip(found["a"].starts.tolist(), found["a"].lengths.tolist(), strict=True)
    assert [data[start : start + length] for start, length in spans] == texts
    assert len(found["b"].starts) == 1


def test_a_larger_buffer_with_old_bytes_behind_the_record():
    data = example({"a": [b"x" * 300], "n": np.array([3, 2**40])})
    buffer = bytearray(data + b"\x0a\x03old" * 50)
    found = parse_example(buffer, len(data))
    assert found.keys() == {"a", "n"}
    buffer[:] = bytes(len(buffer))  # the next record comes into the same buffer
    assert found["n"].tolist() == [3, 2**40]
    for cut in range(1, len(data)):
        with pytest.raises(DatasetError, match=r"not a tf\.train\.Example"):
            parse_example(bytearray(data + b"\x0a\x03old" * 50), len(data) - cut)


def test_floats_are_copied_out_of_the_buffer():
    values = np.arange(5, dtype=np.float32) / 3
    buffer = bytearray(example({"f": values}))
    found = parse_example(buffer)["f"]
    buffer[:] = bytes(len(buffer))
    assert (found == values).all()


def test_numbers_one_by_one_and_packed():
    """Both are legal; the writers of other languages use the first."""
    single = b"".join(varint(1 << 3 | 0) + varint(n) for n in (5, 300, 2**63 - 1))
    data = message(1, message(1, message(1, b"k") + message(2, message(3, single))))
    assert parse_example(data)["k"].tolist() == [5, 300, 2**63 - 1]
    floats = b"".join(b"\x0d" + np.float32(x).tobytes() for x in (0.5, -2.0))
    data = message(1, message(1, message(1, b"k") + message(2, message(2, floats))))
    assert parse_example(data)["k"].tolist() == [0.5, -2.0]


def test_negative_numbers():
    minus = b"\xff" * 9 + b"\x01"  # -1 as ten digits
    data = message(1, message(1, message(1, b"k") + message(2, message(3, message(1, minus)))))
    assert parse_example(data)["k"].tolist() == [-1]
