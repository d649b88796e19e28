"""Mean and standard deviation in one pass, block by block, mergeable and weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
