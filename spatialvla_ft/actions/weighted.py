"""Distinct numbers of an axis with their weights: what quantile bins are cut from.

Up to `DISTINCT` distinct numbers the table is exact. Beyond, numbers that fall in the same of
`CELLS` equal cells of the axis's range become one entry: its value is the smallest of them, its
mean is theirs. Quantiles then lie at most one cell, 2^-20 of the range, below the true ones, and
memory no longer grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .axes import F64

DISTINCT = 1 << 18
CELLS = 1 << 20


@dataclass(frozen=True)
class Weighted:
    """Sorted distinct numbers.

    Attributes:
        values: (k,) increasing.
        weights: (k,) how much each counts; how often, where every number counts 1.
        means: (k,) mean of the numbers that an entry stands for; the value itself unless merged.
        error: how far below the true one a quantile may lie; 0 where nothing was merged.
    """

    values: F64
    weights: F64
    means: F64
    error: float = 0.0

    @classmethod
    def of(cls, numbers: F64) -> Weighted:
        """The exact table of some numbers, each of weight 1."""
        values, counts = np.unique(np.asarray(numbers, np.float64), return_counts=True)
        return cls(values, counts.astype(np.float64), values)

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum())

    def where(self, chosen: np.ndarray) -> Weighted:
        """Some of the entries."""
        return Weighted(self.values[chosen], self.weights[chosen], self.means[chosen], self.error)

    def quantiles(self, shares: F64) -> F64:
        """By linear interpolation between order statistics, as `np.quantile`."""
        total = self.total
        cumulative = np.cumsum(self.weights)
        places = np.asarray(shares, np.float64) * max(total - 1, 0.0)
        below = np.floor(places)
        last = len(self.values) - 1
        low = np.minimum(np.searchsorted(cumulative, below, side="right"), last)
        high = np.minimum(np.searchsorted(cumulative, below + 1, side="right"), last)
        start, stop = self.values[low], self.values[high]
        return np.asarray(start + (places - below) * (stop - start))


class Tally:
    """A `Weighted` table in the making, from any number of blocks in bounded memory."""

    def __init__(
        self, low: float, high: float, *, distinct: int = DISTINCT, cells: int = CELLS
    ) -> None:
        self.low, self.high = low, high
        self._distinct, self._cells = distinct, cells
        self._exact: Weighted | None = Weighted(np.empty(0), np.empty(0), np.empty(0))
        self._sums = self._weights = self._least = np.empty(0)

    def add(self, numbers: F64, weight: float = 1.0) -> None:
        """Count some numbers, clipped to the range."""
        new = Weighted.of(np.clip(numbers, self.low, self.high))
        new = Weighted(new.values, new.weights * weight, new.means)
        if self._exact is None:
            self._spread(new)
            return
        old = self._exact
        values, place = np.unique(np.concatenate([old.values, new.values]), return_inverse=True)
        both = np.concatenate([old.weights, new.weights])
        weights = np.bincount(place, both, len(values)).astype(np.float64)
        self._exact = Weighted(values, weights, values)
        if len(values) > self._distinct:
            everything, self._exact = self._exact, None
            self._sums, self._weights = np.zeros(self._cells), np.zeros(self._cells)
            self._least = np.full(self._cells, np.inf)
            self._spread(everything)

    def _spread(self, table: Weighted) -> None:
        cell = ((table.values - self.low) / (self.high - self.low) * self._cells).astype(np.int64)
        cell = np.minimum(cell, self._cells - 1)
        np.add.at(self._weights, cell, table.weights)
        np.add.at(self._sums, cell, table.weights * table.values)
        np.minimum.at(self._least, cell, table.values)

    def table(self) -> Weighted:
        """What was counted so far."""
        if self._exact is not None:
            return self._exact
        full = np.flatnonzero(self._weights > 0)
        weights, least = self._weights[full], self._least[full]
        means = np.maximum(self._sums[full] / weights, least)
        return Weighted(least, weights, means, (self.high - self.low) / self._cells)
