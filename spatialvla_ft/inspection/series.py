"""Columns of several episodes, one after another.

The raw side of a dataset, before any card: which columns and pictures there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike, NDArray

from spatialvla_ft.data.errors import DatasetError, no_feature
from spatialvla_ft.data.store import Column, Field, Source
from spatialvla_ft.inspection.findings import Finding


@dataclass(frozen=True)
class Series:
    """(N, d) values of episodes with these lengths; N is their sum."""

    values: Float64[np.ndarray, "N d"]
    lengths: Int64[np.ndarray, " n"]

    @classmethod
    def join(cls, parts: Sequence[ArrayLike]) -> Series:
        """From one (T, d) or (T,) array per episode."""
        rows = [np.asarray(part, np.float64) for part in parts]
        rows = [row.reshape(len(row), math.prod(row.shape[1:])) for row in rows]
        return cls(np.concatenate(rows), np.array([len(row) for row in rows], np.int64))

    def __len__(self) -> int:
        return len(self.values)

    def columns(self, which: slice | list[int]) -> Series:
        """Some of the columns."""
        return Series(self.values[:, which], self.lengths)

    @cached_property
    def starts(self) -> Int64[np.ndarray, " n"]:
        """Row of the first step of every episode."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    @cached_property
    def has_next(self) -> Bool[np.ndarray, " N"]:
        """(N,) whether the next row is the next step of the same episode."""
        inner = np.ones(len(self), bool)
        inner[(self.starts + self.lengths - 1)[self.lengths > 0]] = False
        return inner

    @property
    def now(self) -> Float64[np.ndarray, "M d"]:
        """Rows that have a next step."""
        rows: Float64[np.ndarray, "M d"] = self.values[self.has_next]
        return rows

    @property
    def then(self) -> Float64[np.ndarray, "M d"]:
        """The next step of every row in `now`."""
        rows: Float64[np.ndarray, "M d"] = self.values[np.flatnonzero(self.has_next) + 1]
        return rows

    @property
    def changes(self) -> Float64[np.ndarray, "M d"]:
        """From each step to the next, never across episodes."""
        difference: Float64[np.ndarray, "M d"] = self.then - self.now
        return difference

    def episodes(self) -> list[NDArray[Any]]:
        """(T, d) of every episode."""
        return np.split(self.values, np.cumsum(self.lengths)[:-1])

    def place(self, row: int) -> tuple[int, int]:
        """(which of the episodes, step in it) of a row."""
        episode = int(np.searchsorted(np.cumsum(self.lengths), row, side="right"))
        return episode, row - int(self.starts[episode])


def correlation(a: Float64[np.ndarray, " M"], b: Float64[np.ndarray, " M"]) -> float:
    """Pearson's r; 0 where one of both does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 1e-12 else 0.0


def longest_run(flags: Bool[np.ndarray, " T"]) -> int:
    """Most True in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


class SourceFields:
    """The features of a source, as a card is held against them.

    A picture of the wrong kind passes: what it looks like shall be seen.
    """

    def __init__(self, source: Source) -> None:
        self.label = source.name
        self._known = {field.key: field for field in source.fields}

    def check_column(self, key: str) -> Column:
        """What a column holds; DatasetError unless it can be read."""
        field = self._known.get(key)
        if field is None:
            raise no_feature(self.label, key, self._known)
        if field.kind == "other":
            why = field.note or f"{field.dtype} is not read here"
            raise DatasetError(f"{self.label} has column {key!r}, but it cannot be read: {why}")
        kind: Any = "picture" if field.kind == "depth" else field.kind
        return Column(kind, field.shape, field.per)

    def check_image(self, key: str, *, depth: bool) -> None:
        """DatasetError unless it may be a picture."""
        column = self.check_column(key)
        if column.kind == "words" or (column.kind == "numbers" and len(column.shape) < 2):
            raise DatasetError(
                f"{key!r} of {self.label} holds {column.kind}, no picture per step; name another "
                "column as camera"
            )


def read_numbers(source: Source, field: Field, episode: int) -> NDArray[np.float64]:
    """(T, width) numbers of a column in an episode."""
    values = np.asarray(source.trajectory(episode, (field.key,))[field.key])
    if values.dtype == object:
        raise DatasetError(f"{field.key!r} of {source.name} holds no plain numbers")
    return values.astype(np.float64).reshape(len(values), -1)


def numeric_columns(source: Source, episodes: list[int]) -> tuple[dict[str, Series], list[Finding]]:
    """Every column of a few numbers per step, and what is said of those that cannot be read."""
    columns, unread = {}, []
    for field in source.fields:
        if not field.is_vector:
            continue
        try:
            parts = [read_numbers(source, field, episode) for episode in episodes]
        except DatasetError as error:
            unread.append(
                Finding(
                    rule="column cannot be read",
                    severity="warning",
                    where=field.key,
                    evidence=str(error),
                    cure="no harm unless a card names it",
                )
            )
        else:
            columns[field.key] = Series.join(parts)
    return columns, unread
