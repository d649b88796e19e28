"""A table of the index: an Arrow file, mapped into memory, whose values are found by row.

From Arrow columns of the index back to NumPy.
"""

from __future__ import annotations

import bisect
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spatialvla_ft.data.rlds.columns import SHAPE
from spatialvla_ft.data.rlds.features import Leaf

WORD = 8
"""Bytes of a whole number; Arrow files keep every buffer at a multiple of it."""


class Table:
    """Record batches of a memory-mapped Arrow file.

    Nothing that grows with the rows is held: a word per batch for their order, and one more for
    each column of whole numbers that is asked for. Every value is read from the mapped file.

    Args:
        path: written without compression.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as file:
            self._file: pa.Buffer = file.read_buffer()
        self._reader = pa.ipc.open_file(self._file)
        self._words = memoryview(self._file[: self._file.size // WORD * WORD]).cast("q")
        self._columns: dict[str, list[int]] = {}
        self.starts = [0]
        for i in range(self._reader.num_record_batches):
            self.starts.append(self.starts[-1] + self._reader.get_batch(i).num_rows)

    def locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        """(batch, row in it) of a row of the whole table."""
        i = self._batch_of(row)
        return self._reader.get_batch(i), row - self.starts[i]

    def _batch_of(self, row: int) -> int:
        # The row after the last one is asked for too, by an episode without steps.
        return min(bisect.bisect_right(self.starts, row), len(self.starts) - 1) - 1

    def number(self, row: int, column: str) -> int:
        """A whole number, by its row in the table; the row must exist."""
        places = self._columns.get(column)
        if places is None:
            places = self._columns[column] = self._find(column)
        i = self._batch_of(row)
        return self._words[places[i] + row - self.starts[i]]

    def numbers(self, column: str) -> NDArray[np.int64]:
        """A column of whole numbers over all batches; a copy."""
        words = np.frombuffer(self._words, np.int64)
        counts = np.diff(self.starts).tolist()
        found = zip(self._find(column), counts, strict=True)
        return np.concatenate([words[place : place + n] for place, n in found])

    def _find(self, column: str) -> list[int]:
        """Where in the file, in words, the values of each batch begin."""
        places = []
        for i in range(self._reader.num_record_batches):
            values = self._reader.get_batch(i).column(column)
            if not len(values):  # an empty buffer may lie anywhere
                places.append(0)
                continue
            buffer = values.buffers()[1]
            place, rest = divmod(buffer.address - self._file.address, WORD)
            assert not rest, f"{self.path}: {column!r} is not aligned"
            assert values.type == pa.int64(), f"{self.path}: {column!r} is {values.type}"
            assert not values.null_count, f"{self.path}: {column!r} has gaps"
            assert 0 <= place <= len(self._words) - len(values), f"{self.path} is compressed"
            places.append(place + values.offset)
        return places


def from_arrow(leaf: Leaf, columns: dict[str, pa.Array]) -> Any:
    """Values of rows: (rows, *shape), object arrays for bytes, lists where lengths vary."""
    array = columns[leaf.path]
    if leaf.ragged:
        inner = {name: column.flatten() for name, column in columns.items()}
        values = _unlist(leaf, inner, leaf.ragged - 1)
        return [values[a:b] for a, b in pairwise(_offsets(array))]
    return _unlist(leaf, columns, 0)


def _unlist(leaf: Leaf, columns: dict[str, pa.Array], ragged: int) -> Any:
    array = columns[leaf.path]
    if ragged:
        values = _unlist(leaf, {k: v.flatten() for k, v in columns.items()}, ragged - 1)
        return [values[a:b] for a, b in pairwise(_offsets(array))]
    count = len(array)
    if leaf.encoded:
        shapes = columns.get(leaf.path + SHAPE)
        values = [
            _decode(blob, leaf, leaf.shape if shapes is None else tuple(shapes[i].as_py()))
            for i, blob in enumerate(array.to_pylist())
        ]
        if -1 in leaf.shape:
            return values
        return np.stack(values) if values else np.empty((0, *leaf.shape), leaf.dtype)
    if leaf.shape and leaf.width >= 0:
        # As `flatten` does, without pyarrow's compute engine, which costs more than all else here.
        array = array.values.slice(array.offset * leaf.width, count * leaf.width)
    elif leaf.shape:
        array = array.flatten()
    flat: NDArray[Any]
    if leaf.kind == "bytes":
        flat = np.empty(len(array), object)
        flat[:] = array.to_pylist()
    else:
        flat = _numbers(array, leaf.stored).view(leaf.dtype)
    shape = leaf.shape
    if leaf.width < 0:
        known = int(np.prod([size for size in shape if size >= 0]))
        varying = flat.size // max(1, count * known)
        shape = tuple(varying if size < 0 else size for size in shape)
    return flat.reshape(count, *shape)


def _offsets(lists: pa.Array) -> list[int]:
    """Where each list begins in the values of all, and where the last one ends."""
    found = _numbers(lists.offsets, np.dtype(np.int64))
    offsets: list[int] = (found - found[0]).tolist()
    return offsets


def _numbers(array: pa.Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values of an array without gaps, in place: pyarrow's own way imports pandas."""
    buffer = array.buffers()[1]
    start, count = array.offset, len(array)
    if buffer is None or not count:
        return np.empty(0, dtype)
    if dtype == np.bool_:
        octets = np.frombuffer(buffer, np.uint8)[start // 8 : (start + count + 7) // 8]
        bits = np.unpackbits(octets, bitorder="little")
        return bits[start % 8 :][:count].view(np.bool_)
    return np.frombuffer(buffer, dtype, count, start * dtype.itemsize)


def _decode(blob: bytes, leaf: Leaf, shape: tuple[int, ...]) -> NDArray[Any]:
    raw = zlib.decompress(blob) if leaf.encoding == "zlib" else blob
    return np.frombuffer(raw, leaf.dtype).reshape(shape)
