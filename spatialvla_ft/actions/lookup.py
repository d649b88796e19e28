"""Find the bin of many values fast: a table of equal cells with at most one edge per cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .axes import F64

_MOST_CELLS = 1 << 14


@dataclass(frozen=True)
class BinLookup:
    """The same answer as `np.digitize(values, inner)`, several times faster.

    A value's cell comes from a multiplication; the cell knows how many edges lie in the cells
    before it, and the one edge inside it, if any. The map to cells never decreases, so the answer
    is exact whatever the rounding. `cells` is 0 where edges lie too close: binary search then.
    """

    inner: F64
    low: float
    scale: float
    cells: int
    before: NDArray[np.int64]
    edge: F64

    @classmethod
    def of(cls, edges: F64) -> BinLookup:
        """From (n + 1,) increasing edges, outer ones included."""
        inner = np.ascontiguousarray(edges[1:-1])
        low, width = float(edges[0]), float(edges[-1] - edges[0])
        cells = 16
        while cells <= _MOST_CELLS:
            scale = cells / width
            cell = _cell(inner, low, scale, cells)
            if len(np.unique(cell)) == len(cell):
                before = np.searchsorted(cell, np.arange(cells), side="left").astype(np.int64)
                edge = np.full(cells, np.inf)
                edge[cell] = inner
                return cls(inner, low, scale, cells, before, edge)
            cells *= 2
        empty = np.empty(0)
        return cls(inner, low, 0.0, 0, empty.astype(np.int64), empty)

    def __call__(self, values: F64) -> NDArray[np.int64]:
        """(n,) finite values to their bins, (n,) in 0..len(inner)."""
        if self.cells == 0:
            return np.asarray(np.searchsorted(self.inner, values, side="right"), dtype=np.int64)
        cell = _cell(values, self.low, self.scale, self.cells)
        bins = self.before[cell]
        bins += values >= self.edge[cell]
        return bins


def _cell(values: F64, low: float, scale: float, cells: int) -> NDArray[np.int64]:
    position = values - low
    position *= scale
    np.clip(position, 0, cells - 1, out=position)
    return position.astype(np.int64)
