"""Rows of the parquet files as NumPy columns, an episode or a step at a time."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import Feature

OPEN_FILES = 16


class DataFiles:
    """The parquet files of a dataset, a bounded number of them open; one per process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pid = -1
        self._files: OrderedDict[str, _DataFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_pid": -1, "_files": OrderedDict()}

    def open(self, path: str) -> _DataFile:
        """A file of the dataset; the last few stay open."""
        if self._pid != os.getpid():
            self._files, self._pid = OrderedDict(), os.getpid()
        found = self._files.pop(path, None)
        if found is None:
            found = _DataFile(self.folder / path)
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)
        self._files[path] = found
        return found


class _DataFile:
    """One parquet file: which rows are whose, and reading only the row groups that are needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._parquet = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        except FileNotFoundError:
            raise DatasetError(f"{path} is missing; fetch the dataset again") from None
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{path} is damaged ({error}); fetch it again") from None
        meta = self._parquet.metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._starts: list[int] = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        owners = self.rows(0, self._starts[-1], ["episode_index"]).column(0).to_numpy()
        episodes, first, counts = np.unique(owners, return_index=True, return_counts=True)
        self._episodes = {
            int(e): (int(i), int(n)) for e, i, n in zip(episodes, first, counts, strict=True)
        }
        for episode, (start, count) in self._episodes.items():
            if not (owners[start : start + count] == episode).all():
                raise DatasetError(f"{path}: the rows of episode {episode} are not in one piece")

    def place(self, episode: int, length: int) -> int:
        """First row of an episode; DatasetError if it has another length than announced."""
        start, count = self._episodes.get(episode, (0, 0))
        if count != length:
            raise DatasetError(
                f"{self.path} has {count} rows of episode {episode}, meta/episodes says {length}; "
                "fetch the dataset again"
            )
        return start

    def rows(self, start: int, count: int, columns: list[str]) -> pa.Table:
        """Some rows of some columns."""
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, max(start, start + count - 1)) - 1
        groups = list(range(first, min(last, len(self._starts) - 2) + 1))
        table = self._parquet.read_row_groups(groups, columns=columns, use_threads=False)
        absent = sorted(set(columns) - set(table.column_names))
        if absent:
            raise DatasetError(f"{self.path} lacks the columns {absent} that meta/info.json names")
        return table.slice(start - self._starts[first] if groups else 0, count)


def to_numpy(column: pa.ChunkedArray, feature: Feature, where: str) -> NDArray[Any]:
    """(rows, *shape) values of a feature; one number per step becomes (rows,).

    An empty number within a vector of floats becomes NaN; a step without any is an error.
    """
    array = column.combine_chunks()
    if column.null_count:
        raise _empty(where, feature.key, column.null_count)
    if feature.dtype == "string":
        return np.array(array.to_pylist(), dtype=object)
    rows = len(array)
    while isinstance(array, pa.ExtensionArray) or pa.types.is_nested(array.type):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.flatten()
    if array.null_count and np.dtype(feature.dtype).kind != "f":
        raise _empty(where, feature.key, array.null_count)
    if len(array) != rows * int(np.prod(feature.shape)):
        raise DatasetError(
            f"{where}: {feature.key!r} has {len(array)} values in {rows} rows, its shape "
            f"{feature.shape} needs {rows * int(np.prod(feature.shape))}; lengths that vary "
            "cannot be read"
        )
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False).astype(
        np.dtype(feature.dtype), copy=False
    )
    return values if feature.shape == (1,) else values.reshape(rows, *feature.shape)


def _empty(where: str, key: str, count: int) -> DatasetError:
    return DatasetError(
        f"{where}: {key!r} has {count} empty values; write NaN where a number is unknown, or drop "
        "these episodes"
    )
