"""A grid with more or fewer bins, of the distribution that the old bins were cut from.

A checkpoint keeps the edges of its grid and not the Gaussians behind them. Bins of equal
probability give these away: three or more bins of an axis have two or more inner edges, which
determine mu and sigma.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from .axes import F64
from .bins import gaussian_bins, uniform_bins
from .gaussians import truncated_gaussian_edges
from .grid import ActionGrid
from .layout import per_axis

EDGE_TOLERANCE = 1e-6
"""Largest distance between an edge and the found Gaussian's, as a share of the axis's range."""


def rebin(grid: ActionGrid, bins: Sequence[int]) -> ActionGrid:
    """The grid with other numbers of bins.

    Axes whose number stays keep their edges and means bit by bit. On the others a Gaussian grid
    cuts the same Gaussians anew, whose means its tokens decode to, and a uniform one its range.

    Args:
        grid: of kind "gaussian" or "uniform", without zero bins.
        bins: counts in the order of `grid.bins`; the grippers' 2 included.

    Raises:
        ValueError: another kind of grid, counts that do not fit it, or edges that no Gaussian has.
    """
    counts = per_axis(tuple(bins), grid.slots)
    changed = [axis for axis, edges in grid.edges.items() if counts[axis] != len(edges) - 1]
    if not changed:
        return grid
    if grid.kind not in ("gaussian", "uniform") or grid.zero_bin:
        what = f"a {grid.kind} grid" + (" with zero bins" if grid.zero_bin else "")
        raise ValueError(
            f"{what} cannot be cut into {tuple(bins)} without the actions that it was fitted to; "
            "fit one with `spatialvla-ft grids fit --bins ...` and give that grid"
        )
    edges, means = dict(grid.edges), dict(grid.means)
    for axis in changed:
        low, high = float(edges[axis][0]), float(edges[axis][-1])
        if grid.kind == "uniform":
            fitted = uniform_bins(low, high, counts[axis], axis=axis, zero=False)
        else:
            mu, sigma = gaussian_of_edges(edges[axis], axis=axis)
            fitted = gaussian_bins(mu, sigma, low, high, counts[axis], axis=axis, zero=False)
        edges[axis], means[axis] = fitted
    return ActionGrid(
        edges,
        space=grid.action_space,
        means=means,
        decoding=grid.decoding,
        kind=grid.kind,
        min_sigma=grid.min_sigma,
    )


def gaussian_of_edges(edges: F64, *, axis: str = "axis") -> tuple[float, float]:
    """(mu, sigma) of the Gaussian whose truncation to the range has these equal-mass bins.

    Args:
        edges: (n + 1,) ascending, the range at both ends, n at least 3.
        axis: named in errors.

    Raises:
        ValueError: fewer than 3 bins, or no Gaussian comes within `EDGE_TOLERANCE` of every edge.
    """
    n = len(edges) - 1
    if n < 3:
        raise ValueError(
            f"{axis} has {n} bins, which do not tell the Gaussian that they were cut from (3 or "
            "more do); keep their number, or give a grid file of `spatialvla-ft grids fit`"
        )
    low, high = float(edges[0]), float(edges[-1])
    span = high - low

    def cut(guess: F64) -> F64:
        mu, sigma = low + span * guess[0], span * np.exp(guess[1])
        try:
            found = truncated_gaussian_edges(float(mu), float(sigma), low, high, n)
        except ValueError:  # so narrow or far off that float64 cannot cut it
            return np.full(n - 1, 1e3)
        return (found[1:-1] - edges[1:-1]) / span

    inner = edges[1:-1]
    quarter = max(n // 4, 1)
    spread = float(edges[-1 - quarter] - edges[quarter]) / 1.35  # quartiles of a Gaussian
    first = np.array([(np.median(inner) - low) / span, np.log(spread / span)])
    found = least_squares(cut, first, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=500).x
    worst = float(np.abs(cut(found)).max())
    if not worst <= EDGE_TOLERANCE:
        raise ValueError(
            f"{axis}: no Gaussian has these edges (the nearest misses one by {worst:.2g} of the "
            "range), so its bins cannot be cut anew; give a grid file of `spatialvla-ft grids fit`"
        )
    return float(low + span * found[0]), float(span * np.exp(found[1]))
