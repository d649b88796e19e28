"""A table of the index: an Arrow file, mapped into memory, whose values are found by row."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
