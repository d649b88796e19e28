"""Rows of the data files, parquet, as NumPy columns: an episode or a step at a time.

Which rows are whose, which file has those of an episode (`DataFiles`), reading only the row groups
and columns that are asked for (`DataFile`), and their values in the type that meta/info.json names
(`to_numpy`).
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import Feature

logger = logging.getLogger(__name__)

OPEN_FILES = 16


class DataFiles:
    """The parquet files of a dataset, a bounded number of them open; one per process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pid = -1
        self._files: OrderedDict[str, DataFile] = OrderedDict()
        self._holders: dict[int, list[tuple[str, int]]] | None = None
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": -1, "_files": OrderedDict()}

    def open(self, path: str) -> DataFile:
        """A file of the dataset; the last few stay open."""
        if self._pid != os.getpid():
            self._files, self._pid = OrderedDict(), os.getpid()
        found = self._files.pop(path, None)
        if found is None:
            found = DataFile(self.folder / path)
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)
        self._files[path] = found
        return found

    def find(self, episode: int, length: int, named: str | None) -> str:
        """The file with the rows of an episode: the one that the table names, or the one that has.

        Args:
            episode: its number.
            length: rows that it must have, at least one.
            named: file that the episode table names, or None where it names none.

        Raises:
            DatasetError: no file, or several, have its rows.
        """
        there = named is not None and (named in self._files or (self.folder / named).is_file())
        if named is not None and there and self.open(named).count(episode) == length:
            return named
        holders = self._all_holders().get(episode, [])
        whole = [path for path, count in holders if count == length]
        if len(whole) == 1:
            if not self._warned:
                logger.warning(
                    "%s: the episode table says %s for episode %d, its rows are in %s, from where "
                    "they are read; some merges left such tables, and there may be more",
                    self.folder, named or "no file", episode, whole[0],
                )  # fmt: skip
                self._warned = True
            return whole[0]
        told = f"{self.folder}: meta/episodes names no data file"
        if named is not None and there:
            told = f"{self.folder / named} has {self.open(named).count(episode)} rows"
        elif named is not None:
            told = f"{self.folder / named} is missing, which should have the rows"
        others = [f"{path} has {count}" for path, count in holders if path != named]
        raise DatasetError(
            f"{told} of episode {episode}, meta/episodes says {length}; of the other files "
            f"{', '.join(others) or 'none has any'}; fetch the dataset again, or write its "
            "episode table anew"
        )

    def _all_holders(self) -> dict[int, list[tuple[str, int]]]:
        """Episode to (file, rows) of all data files; read once, and only where a table is wrong."""
        if self._holders is None:
            self._holders = {}
            for path in sorted((self.folder / "data").rglob("*.parquet")):
                name = path.relative_to(self.folder).as_posix()
                for episode, count in DataFile(path).counts.items():
                    self._holders.setdefault(episode, []).append((name, count))
        return self._holders


class DataFile:
    """One parquet file: which rows are whose, and reading only the row groups that are needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._parquet = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        except FileNotFoundError:
            raise DatasetError(f"{path} is missing; fetch the dataset again") from None
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{path} is damaged ({error}); fetch it again") from None
        meta = self._parquet.metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._starts: list[int] = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        self._leaves = _leaves_of(self._parquet.schema_arrow)
        self.num_rows = self._starts[-1]
        owners = self._owners()
        episodes, first, counts = np.unique(owners, return_index=True, return_counts=True)
        last = len(owners) - 1 - np.unique(owners[::-1], return_index=True)[1]
        self._first = dict(zip(episodes.tolist(), first.tolist(), strict=True))
        self._scattered = set(episodes[last - first + 1 != counts].tolist())
        self.counts: dict[int, int] = dict(zip(episodes.tolist(), counts.tolist(), strict=True))

    def _owners(self) -> Int64[np.ndarray, " rows"]:
        """The episode of every row."""
        column = self.rows(0, self._starts[-1], ["episode_index"]).column(0)
        feature = Feature("episode_index", "int64", (1,), None, {})
        return to_numpy(column, feature, str(self.path), unit="row")

    def count(self, episode: int) -> int:
        """Rows of an episode."""
        return self.counts.get(episode, 0)

    def first(self, episode: int) -> int:
        """First row of an episode; DatasetError if others lie between its rows."""
        if episode in self._scattered:
            raise DatasetError(
                f"{self.path}: the rows of episode {episode} are not in one piece; sort the file "
                "by episode_index and frame_index"
            )
        first: int = self._first[episode]
        return first

    def has(self, column: str) -> bool:
        """Whether there is such a column."""
        return column in self._leaves

    def kind(self, column: str) -> pa.DataType:
        """How a column is stored."""
        return self._parquet.schema_arrow.field(column).type

    def rows(self, start: int, count: int, columns: Iterable[str]) -> pa.Table:
        """Some rows of some columns."""
        columns = list(columns)
        absent = sorted(name for name in columns if not self.has(name))
        if absent:
            raise DatasetError(f"{self.path} lacks the columns {absent} that meta/info.json names")
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, max(start, start + count - 1)) - 1
        groups = list(range(first, min(last, len(self._starts) - 2) + 1))
        # By number: a name also selects all whose names go on from it after a dot.
        leaves = [leaf for name in columns for leaf in self._leaves[name]]
        try:
            table = self._parquet.reader.read_row_groups(
                groups, column_indices=leaves, use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{self.path} is damaged ({error}); fetch it again") from None
        return table.slice(start - self._starts[first] if groups else 0, count)


def _leaves_of(schema: pa.Schema) -> dict[str, range]:
    """Column to the numbers of the stored columns that it consists of."""
    found, at = {}, 0
    for field in schema:
        count = _count_leaves(field.type)
        found[field.name] = range(at, at + count)
        at += count
    return found


def _count_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _count_leaves(kind.storage_type)
    if not pa.types.is_nested(kind):
        return 1
    return sum(_count_leaves(kind.field(i).type) for i in range(kind.num_fields))


def to_floats(column: pa.ChunkedArray, key: str, where: str) -> Float64[np.ndarray, " rows"]:
    """One number per row, NaN where it is empty; DatasetError if it holds no plain numbers."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type) and array.type.list_size == 1:
        array = array.flatten()
    try:
        found: Float64[np.ndarray, " rows"] = array.cast(pa.float64()).to_numpy(
            zero_copy_only=False
        )
    except pa.ArrowException:
        raise DatasetError(
            f"{where}: {key!r} is stored as {array.type}, it must hold one number per row; write "
            "the column again"
        ) from None
    return found


def to_numpy(
    column: pa.ChunkedArray, feature: Feature, where: str, *, unit: str = "step"
) -> NDArray[Any]:
    """(rows, *shape) values of a feature; one number per step becomes (rows,).

    An empty number within a vector of floats becomes NaN; a step without any is an error.

    Args:
        column: as it is stored.
        feature: what the dataset says of it.
        where: what a message names first: the file, or dataset and episode.
        unit: what a row is in a message.

    Raises:
        DatasetError: empty values, another shape, or numbers that the feature's type cannot hold.
    """
    array = column.combine_chunks()
    if column.null_count:
        raise _empty(where, feature, array, 1, unit)
    if feature.dtype == "string":
        return _texts(array, where, feature)
    rows, width = len(array), int(np.prod(feature.shape))
    even = True
    while isinstance(array, pa.ExtensionArray) or pa.types.is_nested(array.type):
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
            continue
        if not hasattr(array.type, "value_type") or pa.types.is_map(array.type):
            raise _unlike(where, feature, column.type)
        sizes = pc.min_max(pc.list_value_length(array))
        even = even and sizes["min"].as_py() == sizes["max"].as_py()
        array = array.flatten()
    dtype = np.dtype(feature.dtype)
    if array.null_count and dtype.kind != "f":
        raise _empty(where, feature, array, width, unit)
    if len(array) != rows * width or not even:
        raise DatasetError(
            f"{where}: {feature.key!r} has {len(array)} values in {rows} rows"
            f"{'' if even else ', not the same number in each'}, its shape {feature.shape} needs "
            f"{width} in each; lengths that vary cannot be read"
        )
    stored: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    if stored.dtype.kind not in "biuf":
        raise _unlike(where, feature, column.type)
    values = _cast(stored, feature, where, width, unit)
    return values if feature.shape == (1,) else values.reshape(rows, *feature.shape)


def _cast(
    stored: NDArray[Any], feature: Feature, where: str, width: int, unit: str
) -> NDArray[Any]:
    """In the feature's type; whole numbers that were stored as floats are whole numbers."""
    dtype = np.dtype(feature.dtype)
    if stored.dtype == dtype:
        return stored
    if dtype.kind == "f":
        return stored.astype(dtype)
    with np.errstate(invalid="ignore"):
        values = stored.astype(dtype)
        lost = np.flatnonzero(values != stored)
    if len(lost):
        raise DatasetError(
            f"{where}: {feature.key!r} is {stored[lost[0]]} at {unit} {lost[0] // max(width, 1)}, "
            f"which its type {feature.dtype} cannot hold; mend the column, or its dtype in "
            "meta/info.json"
        )
    return values


def _texts(array: pa.Array, where: str, feature: Feature) -> NDArray[Any]:
    """(rows,) strings; (rows,) arrays of strings where a step has several."""
    several = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    inner = array.type.value_type if several else array.type
    if not isinstance(inner, pa.DictionaryType) and str(inner).split("_")[-1].split("[")[0] not in (
        "string", "binary", "view", "null",
    ):  # fmt: skip
        raise _unlike(where, feature, array.type)
    if not several:
        return np.array(array.to_pylist(), dtype=object)
    found = np.empty(len(array), dtype=object)
    for i, texts in enumerate(array.to_pylist()):
        found[i] = np.array(texts, dtype=object)
    return found


def _unlike(where: str, feature: Feature, kind: pa.DataType) -> DatasetError:
    return DatasetError(
        f"{where}: {feature.key!r} is stored as {kind}, meta/info.json says {feature.dtype}; mend "
        "one of both"
    )


def _empty(where: str, feature: Feature, array: pa.Array, width: int, unit: str) -> DatasetError:
    first = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0]) // max(width, 1)
    missing = "the words" if feature.dtype == "string" else "the numbers"
    cure = f"write {missing} that are missing"
    if feature.is_number and np.dtype(feature.dtype).kind == "f":
        cure = "write NaN where a number is unknown"
    return DatasetError(
        f"{where}: {feature.key!r} has {array.null_count} empty values; {cure}, or drop these "
        f"episodes (the first is at {unit} {first})"
    )
