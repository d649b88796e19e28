"""Where every episode lies: the same table for v2.1 and v3.0, as columns.

How long each is, which data file has its rows and where in which videos its pictures are, checked
for all at once; and the small files in which a dataset tells it, JSON lines and parquet.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.clips import Clips, Places
from spatialvla_ft.data.lerobot.info import Info

logger = logging.getLogger(__name__)

NUMBERS = {
    "v2.1": ("episode_chunk", "episode_index"),
    "v3.0": ("chunk_index", "file_index"),
}
"""The numbers in the names of files."""
OWN = ("data/", "videos/", "meta/", "dataset_", "stats/")
"""What columns of `meta/episodes` begin with that are LeRobot's own."""


class Episodes:
    """All episodes in order; what a table has for one only is looked up when it is asked for.

    Attributes:
        lengths: (n,) steps.
        data: which data file holds each.
        clips: key of a video to its places.
    """

    def __init__(
        self,
        lengths: Int64[np.ndarray, " n"],
        data: Places,
        clips: dict[str, Clips],
        rows: _Rows,
    ) -> None:
        self.lengths = lengths
        self.data = data
        self.clips = clips
        self._rows = rows

    def __len__(self) -> int:
        return len(self.lengths)

    def tasks(self, episode: int) -> tuple[str, ...]:
        """What the table says that the robot was told in an episode; empty where it tells none."""
        told = self._rows.read(episode, ["tasks"]).get("tasks")
        told = [told] if isinstance(told, str) else told
        return tuple(word for word in told or () if isinstance(word, str))

    def extra(self, episode: int) -> dict[str, Any]:
        """Further columns of `meta/episodes` (v3.0)."""
        own = ("episode_index", "length", "tasks")
        row = self._rows.read(episode)
        return {k: v for k, v in row.items() if k not in own and not k.startswith(OWN)}


class _Rows:
    """Rows of the tables as they are on disk, by the number of their episode."""

    def __init__(self, tables: list[Any], order: Int64[np.ndarray, " n"]) -> None:
        self.tables, self.order = tables, order
        self.ends = np.cumsum([1 if isinstance(t, dict) else len(t) for t in tables])

    def read(self, episode: int, names: Iterable[str] | None = None) -> dict[str, Any]:
        """All columns, or those of these that there are."""
        row = int(self.order[episode])
        at = int(np.searchsorted(self.ends, row, side="right"))
        table = self.tables[at]
        if isinstance(table, dict):
            return table
        row -= int(self.ends[at - 1]) if at else 0
        have = table.column_names
        wanted = have if names is None else [name for name in names if name in have]
        return {name: table.column(name)[row].as_py() for name in wanted}


def read_episodes(folder: Path, info: Info) -> Episodes:
    """All episodes.

    Raises:
        DatasetError: a table is missing or damaged, episodes are not numbered 0, 1, 2, ..., one has
            no length, or there are fewer than the splits name.
    """
    tables: list[Any]
    if info.version == "v2.1":
        place = folder / "meta/episodes.jsonl"
        tables = read_json_lines(place)
    else:
        place = folder / "meta/episodes"
        tables = _episode_tables(place)
    columns = _Columns(place, tables)
    numbers = columns.whole("episode_index")
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    if not np.array_equal(numbers, np.arange(len(numbers))):
        twice = np.unique(numbers[1:][numbers[1:] == numbers[:-1]])
        missing = np.setdiff1d(np.arange(len(numbers)), numbers)
        raise DatasetError(
            f"{place}: episodes must be numbered 0 to {len(numbers) - 1}; missing are "
            f"{missing[:8].tolist()}, there twice {twice[:8].tolist()}; remove files of an earlier "
            "recording, fetch the whole dataset, or write it again"
        )
    lengths = columns.whole("length")[order]
    _check_splits(place, info, len(lengths))
    names = NUMBERS[info.version]
    count = np.arange(len(lengths), dtype=np.float64)

    def places(what: str, template: str, **fixed: str) -> Places:
        if info.version == "v2.1":
            return Places(what, template, names, fixed, count // info.chunks_size, count)
        chunks, files = (columns.numbers(f"{what}/{name}")[order] for name in names)
        return Places(what, template, names, fixed, chunks, files)

    clips = {}
    for key, feature in info.features.items():
        if feature.dtype == "video":
            what = f"videos/{key}"
            told = info.version != "v2.1"
            starts = columns.numbers(f"{what}/from_timestamp")[order] if told else 0 * count
            stops = columns.numbers(f"{what}/to_timestamp")[order] if told else np.nan * count
            told = told and columns.has(f"{what}/to_timestamp")
            found = places(what, _video_path(info), video_key=key)
            clips[key] = Clips(key, found, starts, stops, told)
    return Episodes(lengths, places("data", info.data_path), clips, _Rows(tables, order))


def _check_splits(place: Path, info: Info, count: int) -> None:
    named = max((part.stop for part in info.splits.values()), default=0)
    if named > count:
        raise DatasetError(
            f"{place} has {count} episodes, the splits of meta/info.json {named}: {info.splits}; "
            "fetch the whole dataset, or mend total_episodes and splits"
        )
    if named < count:
        logger.warning(
            "%s has %d episodes, the splits of meta/info.json end at %d: the others are not read",
            place, count, named,
        )  # fmt: skip


class _Columns:
    """Numbers of the episode table, in the order of its files; NaN where there is none."""

    def __init__(self, place: Path, tables: list[Any]) -> None:
        self.place = place
        self.tables = tables

    def has(self, name: str) -> bool:
        """Whether any file has the column."""
        return any(
            name in (table if isinstance(table, dict) else table.column_names)
            for table in self.tables
        )

    def numbers(self, name: str) -> Float64[np.ndarray, " n"]:
        """A column."""
        if self.tables and isinstance(self.tables[0], dict):
            return np.array([_number(row.get(name), name, self.place) for row in self.tables])
        parts = [np.empty(0)]
        for table in self.tables:
            if name not in table.column_names:
                parts.append(np.full(len(table), np.nan))
                continue
            column = table.column(name)
            try:
                values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
            except pa.ArrowException:
                raise DatasetError(
                    f"{self.place}: column {name!r} is {column.type}, it must hold one number per "
                    "episode; write the episode table again, or fetch the dataset again"
                ) from None
            parts.append(values)
        return np.concatenate(parts)

    def whole(self, name: str) -> Int64[np.ndarray, " n"]:
        """A column of whole numbers from 0; DatasetError with the first that is none."""
        values = self.numbers(name)
        with np.errstate(invalid="ignore"):
            bad = np.flatnonzero(~((values >= 0) & (values == np.rint(values))))
        if len(bad):
            value = values[bad[0]]
            told = "empty" if np.isnan(value) else f"{value:g}"
            raise DatasetError(
                f"{self.place}: {name!r} is {told} in row {bad[0]} ({len(bad)} of {len(values)} "
                "rows), it must be a whole number from 0; write the episode table again, or fetch "
                "the dataset again"
            )
        return values.astype(np.int64)


def _number(value: Any, name: str, place: Path) -> float:
    if value is None:
        return np.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(
            f"{place}: {name!r} is {value!r}, it must be a number; fetch the dataset again"
        )
    return float(value)


def _episode_tables(place: Path) -> list[pa.Table]:
    """The tables of `meta/episodes`, without the statistics, which take most of their room."""
    files = sorted(place.glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{place} has no parquet file; fetch the dataset again")
    return [read_parquet(path, leave_out="stats/") for path in files]


def _video_path(info: Info) -> str:
    if info.video_path is None:
        raise DatasetError("meta/info.json has video features but no video_path; fetch it again")
    return info.video_path


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; DatasetError if it is missing or damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; fetch the dataset again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not JSON lines ({error}); fetch it again") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{path} is not one JSON object a line; fetch it again")
    return rows


def read_parquet(path: Path, *, leave_out: str | None = None) -> pa.Table:
    """A small parquet file.

    Args:
        path: file.
        leave_out: what columns begin with that are not read.

    Raises:
        DatasetError: it is missing or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            kept = [n for n in names if leave_out is None or not n.startswith(leave_out)]
            table = file.read(columns=kept, use_threads=False)
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; fetch the dataset again") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is damaged ({error}); fetch it again") from None
    return table.select(kept)
