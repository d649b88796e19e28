"""Bins from data instead of from a Gaussian: quantile edges and the data's mean in each bin."""

from __future__ import annotations

import numpy as np

from .axes import F64
from .weighted import Weighted

_SLIVER = 1e-6
"""Width of the bin around a value that repeats, as a share of the axis range."""


def quantile_edges(values: Weighted, low: float, high: float, n: int) -> F64:
    """(n + 1,) increasing edges from `low` to `high` with about equal numbers of values per bin.

    A value that alone fills a bin (a robot that stands still, a clipped extreme) gets a sliver of
    its own, so that decoding returns it; where fewer distinct values than bins exist, the widest
    bins are halved.
    """
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
