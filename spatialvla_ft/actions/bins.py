"""Edges and means of the bins of one axis: of a Gaussian, of data, or of equal width.

Bins that represent no motion exactly (`zero_bin`).

A line gets a bin [-eps, eps], a length r a first bin [0, eps], which decode to exactly 0. eps lies
halfway between 0 and the nearest other decoded value, so every number goes to the nearer of the
two, as for an ordinary bin; the others keep equal probability. It is at least 1e-3, because
normalising a motionless action in float32 may miss 0 by a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr

from .axes import F64
from .gaussians import truncated_gaussian_edges, truncated_gaussian_means
from .quantiles import Weighted, conditional_means, quantile_edges

SMALLEST_EPS = 1e-3
"""Least half-width of a zero bin, normalised units."""

Cut = Callable[[float, float, int], tuple[F64, F64]]
"""(low, high, n) to the edges (n + 1,) and means (n,) of n bins of equal probability."""
Share = Callable[[float, float], float]
"""(low, high) to the probability strictly between them; any scale."""


def cut_around_zero(
    cut: Cut, share: Share, low: float, high: float, n: int, *, axis: str = "axis"
) -> tuple[F64, F64]:
    """Edges (n + 1,) and means (n,) of `n` bins on [low, high], one of which is exactly 0.

    ValueError if there are too few bins: a length needs 2, a line 3.
    """
    least = 2 if low == 0 else 3
    if n < least:
        raise ValueError(
            f"{axis} has {n} bins; with zero_bin it needs at least {least}, one of them for 0"
        )
    if low == 0:
        right, right_means = _settle(lambda eps: cut(eps, high, n - 1))
        return np.concatenate([[0.0], right]), np.concatenate([[0.0], right_means])
    below, above = share(low, 0.0), share(0.0, high)
    whole = below + above
    wanted = (n - 1) * below / whole if whole > 0 else (n - 1) / 2
    left = int(np.clip(round(wanted), 1, n - 2))

    def both(eps: float) -> tuple[F64, F64]:
        edges_left, means_left = cut(low, -eps, left)
        edges_right, means_right = cut(eps, high, n - 1 - left)
        means = np.concatenate([means_left, [0.0], means_right])
        return np.concatenate([edges_left, edges_right]), means

    return _settle(both)


def _settle(bins_at: Callable[[float], tuple[F64, F64]]) -> tuple[F64, F64]:
    """Bins for the smallest eps that is half of the nearest decoded value beside the zero bin.

    That value grows with eps and stays below twice eps in the end, so walking up from the
    smallest eps arrives.
    """
    eps = SMALLEST_EPS
    edges, means = bins_at(eps)
    for _ in range(100):
        beside = np.abs(means[means != 0])
        wanted = max(SMALLEST_EPS, 0.5 * float(beside.min()))
        if wanted - eps <= 1e-9:
            break
        eps = wanted
        edges, means = bins_at(eps)
    return edges, means


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
