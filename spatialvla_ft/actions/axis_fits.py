"""Edges and means of the bins of one axis: of a Gaussian, of data, or of equal width."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from .axes import F64
from .gaussians import truncated_gaussian_edges, truncated_gaussian_means
from .quantiles import conditional_means, quantile_edges
from .weighted import Weighted
from .zero_bins import Cut, Share, cut_around_zero


def gaussian_bins(
    mu: float, sigma: float, low: float, high: float, n: int, *, axis: str, zero: bool
) -> tuple[F64, F64]:
    """Edges (n + 1,) and means (n,) of equal probability under N(mu, sigma) cut to the range."""

    def cut(start: float, stop: float, count: int) -> tuple[F64, F64]:
        edges = truncated_gaussian_edges(mu, sigma, start, stop, count, axis=axis)
        return edges, truncated_gaussian_means(mu, sigma, edges)

    def share(start: float, stop: float) -> float:
        a, b = (start - mu) / sigma, (stop - mu) / sigma
        return float(ndtr(-a) - ndtr(-b) if a > 0 else ndtr(b) - ndtr(a))

    return _bins(cut, share, low, high, n, axis, zero)


def quantile_bins(
    values: Weighted, low: float, high: float, n: int, *, axis: str, zero: bool
) -> tuple[F64, F64]:
    """Edges (n + 1,) and means (n,) with equal numbers of the values in each bin."""

    def cut(start: float, stop: float, count: int) -> tuple[F64, F64]:
        inside = values.where((values.values >= start) & (values.values <= stop))
        edges = quantile_edges(inside, start, stop, count)
        return edges, conditional_means(inside, edges)

    def share(start: float, stop: float) -> float:
        return values.where((values.values > start) & (values.values < stop)).total

    return _bins(cut, share, low, high, n, axis, zero)


def uniform_bins(low: float, high: float, n: int, *, axis: str, zero: bool) -> tuple[F64, F64]:
    """Edges (n + 1,) and midpoints (n,) of bins of equal width (on either side of a zero bin)."""

    def cut(start: float, stop: float, count: int) -> tuple[F64, F64]:
        edges = np.linspace(start, stop, count + 1)
        return edges, 0.5 * (edges[:-1] + edges[1:])

    return _bins(cut, lambda start, stop: stop - start, low, high, n, axis, zero)


def _bins(
    cut: Cut, share: Share, low: float, high: float, n: int, axis: str, zero: bool
) -> tuple[F64, F64]:
    if zero:
        return cut_around_zero(cut, share, low, high, n, axis=axis)
    return cut(low, high, n)


def check_min_sigma(min_sigma: float) -> float:
    """The lower limit of every sigma itself, or ValueError."""
    if not (math.isfinite(min_sigma) and min_sigma >= 0):
        raise ValueError(f"min_sigma is {min_sigma}; it must be finite and at least 0")
    return float(min_sigma)
