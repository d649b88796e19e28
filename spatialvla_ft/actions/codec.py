"""How one slot turns action columns into token ids and ids into columns.

Every slot can do it two ways: whole columns at once, and action by action in plain Python, which is
faster for the few actions of a control step.

Find the bin of many values fast: a table of equal cells with at most one edge per cell.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .axes import F64, spherical_from_xyz
from .layout import Slot

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


I64 = NDArray[np.int64]
RowEncoder = Callable[[list[float]], int]
"""One clipped action to the relative id of one slot."""


class SlotCodec:
    """One slot with its bins.

    Attributes:
        slot: which dimensions it codes.
        bins: of each axis; (2,) for a switch.
        total: number of token ids.
        offset: relative id of the slot's first token.
    """

    def __init__(self, slot: Slot, edges: Mapping[str, F64], offset: int) -> None:
        self.slot = slot
        self.offset = offset
        self.bins = tuple(len(edges[axis]) - 1 for axis in slot.axes) or (2,)
        self.total = math.prod(self.bins)
        self._lookups = [BinLookup.of(edges[axis]) for axis in slot.axes]
        self._inner = [edges[axis][1:-1].tolist() for axis in slot.axes]

    def encode_columns(self, columns: F64, ids: I64) -> None:
        """Clipped actions (dim of the space, n), one contiguous row per dimension, to ids (n,)."""
        slot = self.slot
        if slot.shape == "switch":
            np.add(columns[slot.start] >= 0.5, self.offset, out=ids)
            return
        own: Any = columns[slot.start : slot.stop]
        if slot.shape == "sphere":
            own = spherical_from_xyz(own.T)
        index = self._lookups[0](own[0])
        for n, lookup, column in zip(self.bins[1:], self._lookups[1:], own[1:], strict=True):
            index *= n
            index += lookup(column)
        np.add(index, self.offset, out=ids)

    def row_encoder(self) -> RowEncoder:
        """The same for one action, as a function with everything it needs bound."""
        start, offset = self.slot.start, self.offset
        if self.slot.shape == "switch":
            return lambda row: offset + (row[start] >= 0.5)
        if self.slot.shape == "sphere":
            return _sphere_encoder(start, offset, self._inner, self.bins)
        if self.slot.dim == 1:
            inner = self._inner[0]
            return lambda row: offset + bisect_right(inner, row[start])
        return _lines_encoder(start, offset, self._inner, self.bins)

    def table(self, centres: Mapping[str, F64]) -> F64:
        """(total, dim) what every id decodes to, given the value of each bin of each axis."""
        slot = self.slot
        if slot.shape == "switch":
            return np.array([[0.0], [1.0]])
        values = np.meshgrid(*(centres[axis] for axis in slot.axes), indexing="ij")
        if slot.shape == "sphere":
            theta, phi, r = values
            values = (
                r * np.sin(theta) * np.cos(phi),
                r * np.sin(theta) * np.sin(phi),
                r * np.cos(theta),
            )
        table = np.stack(values, axis=-1).reshape(-1, slot.dim)
        # + 0.0 makes a zero length a plain 0, never -0.
        return np.asarray(np.clip(table, -1.0, 1.0) + 0.0 if slot.shape == "sphere" else table)


def _sphere_encoder(
    start: int, offset: int, inner: list[list[float]], bins: tuple[int, ...]
) -> RowEncoder:
    at_theta, at_phi, at_r = inner
    _, n_phi, n_r = bins
    own, find, atan2, sqrt = slice(start, start + 3), bisect_right, math.atan2, math.sqrt

    def encode(row: list[float]) -> int:
        x, y, z = row[own]
        rho2 = x * x + y * y
        direction = find(at_theta, atan2(sqrt(rho2), z)) * n_phi + find(at_phi, atan2(y, x))
        return direction * n_r + find(at_r, sqrt(rho2 + z * z)) + offset

    return encode


def _lines_encoder(
    start: int, offset: int, inner: list[list[float]], bins: tuple[int, ...]
) -> RowEncoder:
    at_roll, at_pitch, at_yaw = inner
    _, n_pitch, n_yaw = bins
    own, find = slice(start, start + 3), bisect_right

    def encode(row: list[float]) -> int:
        roll, pitch, yaw = row[own]
        first = find(at_roll, roll) * n_pitch + find(at_pitch, pitch)
        return first * n_yaw + find(at_yaw, yaw) + offset

    return encode
