"""Bins from data instead of from a Gaussian: quantile edges and the data's mean in each bin.

Distinct numbers of an axis with their weights: what quantile bins are cut from.

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


_SLIVER = 1e-6
"""Width of the bin around a value that repeats, as a share of the axis range."""
LOST = 0.25
"""Share of the motion along an axis that bins of equal counts may lose."""
_CELLS, _TURNS = 4096, 30


def quantile_edges(values: Weighted, low: float, high: float, n: int) -> F64:
    """(n + 1,) increasing edges from `low` to `high` with about equal numbers of values per bin.

    A value that alone fills a bin (a robot that stands still, a clipped extreme) gets a sliver of
    its own, so that decoding returns it; where fewer distinct values than bins exist, the widest
    bins are halved. Where equal numbers would spend nearly all bins on the noise of an axis at
    rest, and put its rare motion together with some of that noise, bins lie where they lose least.
    """
    edges = _equal_counts(values, low, high, n)
    if _lost(values, edges) <= max(LOST, 4 / n):
        return edges
    return _least_squares(values, low, high, n)


def _lost(values: Weighted, edges: F64) -> float:
    """Sum of all errors of decoding to the bins' means, as a share of all distances from rest."""
    if not len(values.values):
        return 0.0
    rest = float(values.quantiles(np.array([0.5]))[0])
    moved = float((values.weights * np.abs(values.means - rest)).sum())
    means = conditional_means(values, edges)[np.digitize(values.values, edges[1:-1])]
    error = float((values.weights * np.abs(values.means - means)).sum())
    return error / moved if moved > 0 else 0.0


def _least_squares(values: Weighted, low: float, high: float, n: int) -> F64:
    """(n + 1,) edges of bins that lose little: the worst bin is split until there are `n`.

    The error of a bin is the sum of the squared distances from its mean; edges lie halfway between
    means, and settle there (Lloyd, 1982).
    """
    cells = np.linspace(low, high, _CELLS + 1)
    weight, total = bin_sums(values, cells)
    full = np.flatnonzero(weight)
    weight, total = weight[full], total[full]
    place = total / weight
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (weight, total, total * place)]

    def of(bounds: list[int]) -> tuple[F64, F64]:
        count, first, second = (np.diff(part[bounds]) for part in sums)
        return first / count, second - first**2 / count

    bounds = [0, len(place)]
    while len(bounds) <= n:
        means, errors = of(bounds)
        worst = int(errors.argmax())
        at = int(np.searchsorted(place, means[worst]))
        if not bounds[worst] < at < bounds[worst + 1]:
            break  # what is left are single cells
        bounds.insert(worst + 1, at)
    for _ in range(_TURNS):
        means, _ = of(bounds)
        inner = 0.5 * (means[:-1] + means[1:])
        moved = [0, *np.searchsorted(place, inner).tolist(), len(place)]
        if moved == bounds:
            break
        bounds = moved
    means, _ = of(bounds)
    inner = 0.5 * (means[:-1] + means[1:])
    return _fill(inner.tolist(), low, high, n, _SLIVER * (high - low))


def _equal_counts(values: Weighted, low: float, high: float, n: int) -> F64:
    """(n + 1,) increasing edges with about equal numbers of values per bin."""
    sliver = _SLIVER * (high - low)
    rest = values
    inner: list[float] = []
    while len(inner) < n - 1 and len(rest.values):
        room = n - 1 - len(inner)
        heaviest = int(rest.weights.argmax())
        atom, count = float(rest.values[heaviest]), float(rest.weights[heaviest])
        around = [e for e in (atom, atom + sliver) if low < e < high - sliver / 2]
        if atom + sliver >= high:
            around = [high - sliver]
        if count < 2 or count * (room + 1) < rest.total or len(around) > room:
            inner.extend(rest.quantiles(np.arange(1, room + 1) / (room + 1)).tolist())
            break
        inner.extend(around)
        rest = rest.where(rest.values != atom)
    return _fill(inner, low, high, n, sliver)


def _fill(inner: list[float], low: float, high: float, n: int, sliver: float) -> F64:
    """Sort, drop edges that touch, then halve the widest bins until there are `n`."""
    edges = [low]
    for edge in sorted(inner):
        if edge - edges[-1] >= sliver * 0.5 and high - edge >= sliver * 0.5:
            edges.append(edge)
    edges.append(high)
    while len(edges) < n + 1:
        widest = int(np.argmax(np.diff(edges)))
        edges.insert(widest + 1, 0.5 * (edges[widest] + edges[widest + 1]))
    return np.asarray(edges, dtype=np.float64)


def conditional_means(values: Weighted | F64, edges: F64, *, empty: F64 | None = None) -> F64:
    """(n,) mean of the values inside each bin; `empty`, or the midpoint, where there are none."""
    weight, total = bin_sums(values, edges)
    return bin_means(weight, total, edges, empty=empty)


def bin_sums(values: Weighted | F64, edges: F64) -> tuple[F64, F64]:
    """(n,) weight and (n,) sum of the values inside each bin; both add up over parts of data."""
    n = len(edges) - 1
    if isinstance(values, Weighted):
        numbers, weights, sums = values.values, values.weights, values.weights * values.means
    else:
        numbers, weights, sums = values, None, values
    index = np.digitize(numbers, edges[1:-1])
    weight = np.bincount(index, weights=weights, minlength=n).astype(np.float64)
    return weight, np.bincount(index, weights=sums, minlength=n).astype(np.float64)


def bin_means(weight: F64, total: F64, edges: F64, *, empty: F64 | None = None) -> F64:
    """(n,) means from the sums of `bin_sums`; `empty`, or the midpoint, where the weight is 0."""
    otherwise = 0.5 * (edges[:-1] + edges[1:]) if empty is None else empty
    means = np.divide(total, weight, out=otherwise.astype(np.float64), where=weight > 0)
    return np.asarray(np.clip(means, edges[:-1], edges[1:]), dtype=np.float64)
