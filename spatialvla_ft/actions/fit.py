"""The grid that training and `grids fit` make: bins of a kind, decoding to the data's means.

The grid of `fit.py` from a stream of normalised actions, in memory that does not grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from .axes import F64
from .bins import quantile_bins
from .gaussians import fit_gaussians, gaussian_values, with_widths
from .grid import ActionGrid
from .layout import axis_ranges, check_actions, fitted_values, per_axis, slots_of, zero_axes
from .quantiles import CELLS, DISTINCT, Tally, Weighted, bin_sums
from .spaces import ActionSpace, NormalisedActions
from .summaries import Moments

GridKind = Literal["uniform", "gaussian", "quantile"]
KINDS: tuple[GridKind, ...] = ("uniform", "gaussian", "quantile")


def fit_grid(
    kind: GridKind,
    actions: NormalisedActions,
    *,
    space: ActionSpace | None = None,
    bins: Any = None,
    min_sigma: float = 0.0,
    zero_bin: bool = False,
) -> ActionGrid:
    """A grid of the given kind on normalised actions (n, dim), decoding to the mean of its bins.

    Means are those of the actions, for Gaussian and uniform bins too: the fitted distribution puts
    them elsewhere where it does not fit, such as at a clipped extreme.
    """
    common: dict[str, Any] = {"space": space, "bins": bins, "zero_bin": zero_bin}
    if kind == "quantile":
        return ActionGrid.from_quantiles(actions, **common)
    if kind == "uniform":
        return ActionGrid.uniform(**common).with_means(actions)
    fits = with_widths(fit_gaussians(actions, space), min_sigma)
    return ActionGrid.from_gaussians(fits, min_sigma=min_sigma, **common).with_means(actions)


NormalisedBlocks = Callable[[], Iterator[tuple[Any, float]]]
"""All blocks ((rows, dim) normalised actions, weight of a row), each time it is called."""

Gaussians = dict[str, dict[str, float]]


def gaussian_moments(blocks: Iterable[tuple[Any, float]], space: ActionSpace) -> Moments:
    """Moments of what `fit_gaussians` fits, a column for each name in its order."""
    total: Moments | None = None
    for actions, weight in blocks:
        values = gaussian_values(check_actions(actions, space), space)
        block = Moments.of(np.stack(list(values.values()), axis=1)).scaled(weight)
        total = block if total is None else total + block
    if total is None or not total.weight.any():
        raise ValueError("there are no actions; a fit needs at least one")
    return total


def gaussians_of(moments: Moments, space: ActionSpace) -> Gaussians:
    """Moments as `fit_gaussians` gives them."""
    names = gaussian_values(np.zeros((0, space.dim)), space)
    fits = zip(names, moments.mean.tolist(), moments.std.tolist(), strict=True)
    return {name: {"mu": mu, "sigma": sigma} for name, mu, sigma in fits}


def axis_tables(
    blocks: NormalisedBlocks,
    space: ActionSpace,
    *,
    distinct: int = DISTINCT,
    cells: int = CELLS,
) -> dict[str, Weighted]:
    """Table of the values of every axis; see `weighted.py` for when it is exact."""
    slots = slots_of(space)
    tallies = {
        axis: Tally(low, high, distinct=distinct, cells=cells)
        for axis, (low, high) in axis_ranges(slots).items()
    }
    for values, weight in _values(blocks, space):
        for axis, tally in tallies.items():
            tally.add(values[axis], weight)
    return {axis: tally.table() for axis, tally in tallies.items()}


def fit_grid_blocks(
    kind: GridKind,
    blocks: NormalisedBlocks,
    *,
    space: ActionSpace,
    bins: Any = None,
    min_sigma: float = 0.0,
    zero_bin: bool = False,
    gaussians: Mapping[str, Mapping[str, float]] | None = None,
) -> ActionGrid:
    """As `fit_grid`, block by block: one pass for quantiles, two for Gaussians, one for uniform.

    Args:
        kind: of the grid.
        blocks: normalised actions with their weights.
        space: what the actions are.
        bins: counts in the order of the slots, or None.
        min_sigma: lower limit of every sigma.
        zero_bin: represent no motion exactly.
        gaussians: fits that are known already; they save a pass.
    """
    common: dict[str, Any] = {"space": space, "bins": bins, "zero_bin": zero_bin}
    if kind == "quantile":
        return quantile_grid(axis_tables(blocks, space), **common)
    if kind == "uniform":
        grid = ActionGrid.uniform(**common)
    else:
        fits = gaussians or gaussians_of(gaussian_moments(blocks(), space), space)
        fits = with_widths(fits, min_sigma)
        grid = ActionGrid.from_gaussians(fits, min_sigma=min_sigma, **common)
    sums: dict[str, tuple[F64, F64]] = {
        axis: (np.zeros(len(edges) - 1), np.zeros(len(edges) - 1))
        for axis, edges in grid.edges.items()
    }
    for values, weight in _values(blocks, space):
        for axis, edges in grid.edges.items():
            found = bin_sums(values[axis], edges)
            for total, part in zip(sums[axis], found, strict=True):
                total += part * weight
    return grid.with_bin_sums(sums)


def quantile_grid(
    tables: Mapping[str, Weighted], *, space: ActionSpace, bins: Any = None, zero_bin: bool = False
) -> ActionGrid:
    """Bins of equal counts from the tables of `axis_tables`."""
    slots = slots_of(space)
    counts = per_axis(bins, slots)
    zeros = zero_axes(slots) if zero_bin else ()
    edges, means = {}, {}
    for axis, (low, high) in axis_ranges(slots).items():
        edges[axis], means[axis] = quantile_bins(
            tables[axis], low, high, counts[axis], axis=axis, zero=axis in zeros
        )
    return ActionGrid(edges, space=space, means=means, kind="quantile", zero_bin=zero_bin)


def _values(blocks: NormalisedBlocks, space: ActionSpace) -> Iterator[tuple[dict[str, F64], float]]:
    """The values of every axis, block by block, without directions of what does not move."""
    slots = slots_of(space)
    for actions, weight in blocks():
        array = np.clip(check_actions(actions, space), -1.0, 1.0)
        yield fitted_values(array, slots), weight
