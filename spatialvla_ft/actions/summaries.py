"""Exact quantiles of float32 columns of any length, in memory that does not grow with them.

The bits of a float32, with the sign turned round, are an unsigned integer in the same order. One
pass counts the upper 16 bits; that says which upper halves hold the wanted order statistics, and a
second pass counts the lower 16 bits under those. The counts are all that is kept: 512 KiB for each
column and pass. Columns of up to `BUFFER_ROWS` rows are kept whole instead, and need one pass.

Mean and standard deviation in one pass, block by block, mergeable and weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .axes import F64


@dataclass(frozen=True)
class Moments:
    """Weight, mean, and sum of squared deviations of some numbers, per column.

    Two of them merge without the numbers (Chan, Golub and LeVeque): each part's deviations are from
    its own mean, so that nothing cancels however far the means lie from 0.

    Attributes:
        weight: (n,) sum of the weights; the count where every number weighs 1.
        mean: (n,).
        squares: (n,) weighted sum of squared deviations from the mean.
    """

    weight: F64
    mean: F64
    squares: F64

    @classmethod
    def empty(cls, columns: int) -> Moments:
        """Of no numbers."""
        return cls(np.zeros(columns), np.zeros(columns), np.zeros(columns))

    @classmethod
    def of(cls, values: Any) -> Moments:
        """Of (rows, n) numbers, each of weight 1."""
        array = np.asarray(values, np.float64)
        if not len(array):
            return cls.empty(array.shape[1])
        mean = array.mean(axis=0)
        return cls(np.full(array.shape[1], float(len(array))), mean, ((array - mean) ** 2).sum(0))

    def scaled(self, factor: float) -> Moments:
        """With every weight times `factor`."""
        return Moments(self.weight * factor, self.mean, self.squares * factor)

    def __add__(self, other: Moments) -> Moments:
        """Of the numbers of both."""
        weight = self.weight + other.weight
        share = np.divide(other.weight, weight, out=np.zeros_like(weight), where=weight > 0)
        apart = other.mean - self.mean
        return Moments(
            weight,
            self.mean + share * apart,
            self.squares + other.squares + apart**2 * share * self.weight,
        )

    @property
    def std(self) -> F64:
        """(n,) population standard deviation; 0 of no numbers."""
        variance = np.divide(
            self.squares, self.weight, out=np.zeros_like(self.squares), where=self.weight > 0
        )
        return np.asarray(np.sqrt(variance))


BUFFER_ROWS = 1 << 20
"""Rows that are kept whole before counting begins: 28 MiB of seven columns."""

Block = tuple[NDArray[np.float32], float]
"""(rows, n) numbers and the weight of each row."""
Blocks = Callable[[], Iterator[Block]]
"""All blocks from the first, each time it is called."""

_HALF = 1 << 16


class Summary:
    """Moments, range and exact quantiles of the columns of a stream of blocks.

    Attributes:
        rows: number of rows.
        moments: weighted, float64.
        min: (n,) smallest value.
        max: (n,) largest value.
    """

    def __init__(self, blocks: Blocks, *, buffer_rows: int = BUFFER_ROWS) -> None:
        self._blocks = blocks
        self.rows = 0
        kept: list[Block] | None = []
        upper: F64 | None = None
        for values, weight in blocks():
            if not len(values):
                continue
            if not self.rows:
                self.moments = Moments.empty(values.shape[1])
                self.min, self.max = values.min(0), values.max(0)
            self.rows += len(values)
            self.moments += Moments.of(values).scaled(weight)
            self.min = np.minimum(self.min, values.min(0))
            self.max = np.maximum(self.max, values.max(0))
            if kept is not None:
                kept.append((values, weight))
                if self.rows <= buffer_rows:
                    continue
                upper = np.zeros((values.shape[1], _HALF))
                for earlier, its_weight in kept:
                    _count_upper(upper, earlier, its_weight)
                kept = None
            else:
                assert upper is not None
                _count_upper(upper, values, weight)
        self._kept, self._upper = kept, upper

    def again(self) -> Iterator[Block]:
        """All blocks once more, from memory if they are kept."""
        return self._blocks() if self._kept is None else iter(self._kept)

    def quantiles(self, shares: Sequence[float]) -> F64:
        """(len(shares), n) quantiles.

        Where all rows weigh the same: by linear interpolation between order statistics, as
        `np.quantile`. Else the total weight W takes the place of the number of rows N: the places
        are share * (N - 1) with the weights scaled to add up to N.

        Raises:
            ValueError: there are no rows.
        """
        if not self.rows:
            raise ValueError("no rows, so there are no quantiles")
        places = np.asarray(shares, np.float64) * (self.rows - 1)
        below = np.floor(places)
        wanted = np.unique(np.concatenate([below, np.minimum(below + 1, self.rows - 1)]))
        columns = self._small(wanted) if self._kept is not None else self._large(wanted)
        low = columns[np.searchsorted(wanted, below)]
        high = columns[np.searchsorted(wanted, np.minimum(below + 1, self.rows - 1))]
        apart = (high - low).astype(np.float64)  # in float32 first, as NumPy interpolates
        part = (places - below)[:, None]
        near_low, near_high = low + part * apart, high - (1 - part) * apart
        return np.asarray(np.where(part < 0.5, near_low, near_high), np.float64)

    def _scale(self, cumulative: F64) -> F64:
        """Cumulative weights such that they end at the number of rows."""
        return np.asarray(cumulative * (self.rows / cumulative[-1]))

    def _small(self, wanted: F64) -> NDArray[np.float32]:
        assert self._kept is not None
        values = np.concatenate([block for block, _ in self._kept])
        weights = np.concatenate([np.full(len(block), w) for block, w in self._kept])
        found = []
        for column in values.T:
            order = np.argsort(column, kind="stable")
            cumulative = self._scale(np.cumsum(weights[order]))
            at = np.searchsorted(cumulative, wanted, side="right")
            found.append(column[order][np.minimum(at, len(column) - 1)])
        return np.stack(found, axis=1)

    def _large(self, wanted: F64) -> NDArray[np.float32]:
        assert self._upper is not None
        columns = len(self._upper)
        cumulative = [self._scale(np.cumsum(counts)) for counts in self._upper]
        upper = [_first_above(c, counts, wanted) for c, counts in zip(cumulative, self._upper)]  # noqa: B905
        cells = [np.unique(cell) for cell in upper]
        lower = [{int(cell): np.zeros(_HALF) for cell in own} for own in cells]
        for values, weight in self._blocks():
            keys = _keys(values)
            for column in range(columns):
                high = keys[:, column] >> 16
                for cell, counts in lower[column].items():
                    inside = keys[high == cell, column] & np.uint32(_HALF - 1)
                    if len(inside):
                        counts += np.bincount(inside, minlength=_HALF) * weight
        found = np.empty((len(wanted), columns), np.float32)
        for column in range(columns):
            scale = self.rows / self._upper[column].sum()
            for i, (cell, place) in enumerate(zip(upper[column].tolist(), wanted, strict=True)):
                before = self._upper[column][:cell].sum() * scale
                counts = lower[column][cell]
                bits = _first_above(before + np.cumsum(counts) * scale, counts, np.array([place]))
                found[i, column] = _values(np.array([cell * _HALF + int(bits[0])], np.uint32))[0]
        return found


def _first_above(cumulative: F64, counts: F64, wanted: F64) -> NDArray[np.int64]:
    """The cells with weight in which the order statistics of these ranks lie."""
    last = int(np.flatnonzero(counts)[-1])
    return np.minimum(np.searchsorted(cumulative, wanted, side="right"), last)


def _keys(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Unsigned integers in the order of the numbers; -0.0 counts as 0.0."""
    bits = (values + np.float32(0)).view(np.uint32)
    negative = bits >> 31 == 1
    return np.where(negative, ~bits, bits | np.uint32(1 << 31))


def _values(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The numbers of keys."""
    positive = keys >> 31 == 1
    bits: NDArray[Any] = np.where(positive, keys & np.uint32((1 << 31) - 1), ~keys)
    return bits.astype(np.uint32).view(np.float32)


def _count_upper(counts: F64, values: NDArray[np.float32], weight: float) -> None:
    keys = _keys(values) >> 16
    for column in range(values.shape[1]):
        counts[column] += np.bincount(keys[:, column], minlength=_HALF) * weight
