"""Bins from data instead of from a Gaussian: quantile edges and the data's mean in each bin."""

from __future__ import annotations

import numpy as np

from .axes import F64

_SLIVER = 1e-6
"""Width of the bin around a value that repeats, as a share of the axis range."""


def quantile_edges(values: F64, low: float, high: float, n: int) -> F64:
    """(n + 1,) increasing edges from `low` to `high` with about equal numbers of values per bin.

    A value that alone fills a bin (a robot that stands still, a clipped extreme) gets a sliver of
    its own, so that decoding returns it; where fewer distinct values than bins exist, the widest
    bins are halved.
    """
    sliver = _SLIVER * (high - low)
    rest = np.clip(values, low, high)
    inner: list[float] = []
    while len(inner) < n - 1 and len(rest):
        room = n - 1 - len(inner)
        atoms, counts = np.unique(rest, return_counts=True)
        heaviest = int(counts.argmax())
        atom = float(atoms[heaviest])
        around = [e for e in (atom, atom + sliver) if low < e < high - sliver / 2]
        if atom + sliver >= high:
            around = [high - sliver]
        if counts[heaviest] < 2 or counts[heaviest] * (room + 1) < len(rest) or len(around) > room:
            inner.extend(np.quantile(rest, np.arange(1, room + 1) / (room + 1)).tolist())
            break
        inner.extend(around)
        rest = rest[rest != atom]
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


def conditional_means(values: F64, edges: F64, *, empty: F64 | None = None) -> F64:
    """(n,) mean of the values inside each bin; `empty`, or the midpoint, where there are none."""
    n = len(edges) - 1
    index = np.digitize(values, edges[1:-1])
    count = np.bincount(index, minlength=n)
    total = np.bincount(index, weights=values, minlength=n)
    otherwise = 0.5 * (edges[:-1] + edges[1:]) if empty is None else empty
    means = np.where(count > 0, total / np.maximum(count, 1), otherwise)
    return np.asarray(np.clip(means, edges[:-1], edges[1:]), dtype=np.float64)
