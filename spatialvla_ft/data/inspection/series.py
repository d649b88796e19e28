"""Columns of several episodes, one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike, NDArray


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
