"""What a grid's edges, means and decoding must be; errors that say axis, index, value and cure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from .axes import F64, to_numpy

Decoding = Literal["mean", "midpoint"]
Kind = Literal["gaussian", "quantile", "uniform", "boundaries"]


def check_mode(mode: Any) -> Decoding:
    """The decoding mode itself, or ValueError."""
    if mode == "mean":
        return "mean"
    if mode == "midpoint":
        return "midpoint"
    raise ValueError(f"decoding is {mode!r}; it must be 'mean' or 'midpoint'")


def _check_axes(given: Mapping[str, Any], axes: Iterable[str], what: str) -> None:
    axes = list(axes)
    missing = [axis for axis in axes if axis not in given]
    unknown = [axis for axis in given if axis not in axes]
    if missing or unknown:
        raise ValueError(
            f"{what} must have exactly the axes {axes}; missing {missing}, unknown {unknown}"
        )


def check_edges(
    edges: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, F64]:
    """Read-only copies: every axis, finite, strictly increasing, inside the axis range."""
    _check_axes(edges, ranges, "edges")
    checked = {}
    for axis, (low, high) in ranges.items():
        array = np.array(to_numpy(edges[axis]), dtype=np.float64)
        if array.ndim != 1 or len(array) < 2:
            raise ValueError(
                f"edges of {axis} must be a list of at least 2 numbers (one bin); "
                f"got shape {array.shape}"
            )
        if not np.isfinite(array).all():
            index = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"edges of {axis}[{index}] is {array[index]}; edges must be finite")
        steps = np.diff(array)
        if (steps <= 0).any():
            index = int(np.flatnonzero(steps <= 0)[0]) + 1
            raise ValueError(
                f"edges of {axis}[{index}] is {array[index]}, not above {array[index - 1]} before "
                "it; edges must increase strictly. Use fewer bins or a larger min_sigma"
            )
        if array[0] < low - 1e-6 or array[-1] > high + 1e-6:
            raise ValueError(
                f"edges of {axis} reach from {array[0]} to {array[-1]}, outside its range "
                f"[{low:g}, {high:g}]; theta and phi are in radians, the others normalised"
            )
        array.setflags(write=False)
        checked[axis] = array
    return checked


def check_means(means: Mapping[str, Any], edges: Mapping[str, F64]) -> dict[str, F64]:
    """Read-only copies: one mean per bin, inside its bin."""
    _check_axes(means, edges, "means")
    checked = {}
    for axis in edges:
        array = np.array(to_numpy(means[axis]), dtype=np.float64)
        low, high = edges[axis][:-1], edges[axis][1:]
        if array.shape != low.shape:
            raise ValueError(
                f"means of {axis} need one number per bin, shape {low.shape}; got {array.shape}"
            )
        outside = ~((array >= low) & (array <= high))
        if outside.any():
            index = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"means of {axis}[{index}] is {array[index]}, outside its bin "
                f"[{low[index]}, {high[index]}]"
            )
        array.setflags(write=False)
        checked[axis] = array
    return checked


def check_zero(axis: str, edges: F64, means: F64) -> None:
    """ValueError unless the bin that holds 0 decodes to exactly 0."""
    if not edges[0] <= 0 <= edges[-1]:
        raise ValueError(f"zero_bin is set, but the edges of {axis} do not reach 0")
    index = int(np.digitize(0.0, edges[1:-1]))
    if means[index] != 0:
        raise ValueError(
            f"zero_bin is set, but means of {axis}[{index}], whose bin holds 0, is {means[index]} "
            "and not 0; fit the grid again with zero_bin"
        )
