"""Gaussians per axis, and what a bin of a truncated Gaussian looks like (paper section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from .axes import F64, to_numpy
from .layout import axis_values, check_actions, slots_of
from .spaces import ActionSpace, end_effector_delta

SAME = 1e-6
"""Standard deviation of normalised numbers, at most, that are all the same but for rounding."""


def fit_gaussians(actions: Any, space: ActionSpace | None = None) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (population, ddof 0) of every axis of normalised actions.

    Args:
        actions: (n, dim) normalised actions, NumPy or torch, n >= 1.
        space: what they are; None for one arm.

    Returns:
        {axis: {"mu", "sigma"}} of the translations' dimensions and of all axes. One arm has "x",
        "y", "z", "theta", "phi", "r", "roll", "pitch", "yaw"; theta and phi in radians, the others
        in normalised units.
    """
    space = space or end_effector_delta()
    array = check_actions(to_numpy(actions), space)
    if len(array) == 0:
        raise ValueError("actions has no rows; a fit needs at least one action")
    return {
        name: {"mu": float(column.mean()), "sigma": float(column.std())}
        for name, column in gaussian_values(array, space).items()
    }


def gaussian_values(actions: F64, space: ActionSpace) -> dict[str, F64]:
    """{name: (n,)} what Gaussians are fitted to: the translations' dimensions and all axes."""
    slots = slots_of(space)
    spheres = [slot for slot in slots if slot.shape == "sphere"]
    values = {space.names[i]: actions[:, i] for s in spheres for i in range(s.start, s.stop)}
    return values | axis_values(actions, slots)


def with_widths(
    fits: Mapping[str, Mapping[str, float]], min_sigma: float
) -> dict[str, dict[str, float]]:
    """Fits from which bins can be made: axes on which nothing varies get a sigma of 0.5.

    Which bins they have does not matter then, since all actions are in one of them.
    """
    still = {name for name, fit in fits.items() if fit["sigma"] <= SAME and min_sigma <= SAME}
    return {
        name: {"mu": fit["mu"], "sigma": 0.5 if name in still else fit["sigma"]}
        for name, fit in fits.items()
    }


def truncated_gaussian_edges(
    mu: float, sigma: float, low: float, high: float, n: int, *, axis: str = "axis"
) -> F64:
    """(n + 1,) points that cut N(mu, sigma) truncated to [low, high] into n bins of equal mass.

    The outermost edges are exactly `low` and `high`. ValueError where the Gaussian is so narrow or
    so far outside that float64 cannot tell the edges apart.
    """
    if not (math.isfinite(mu) and math.isfinite(sigma)):
        raise ValueError(f"{axis}: mu {mu} and sigma {sigma} must be finite; fit them again")
    if sigma <= 0:
        raise ValueError(
            f"{axis}: sigma is {sigma}, so its bins would have no width; pass min_sigma > 0 "
            "(the released mixture uses 0.5)"
        )
    alpha, beta = (low - mu) / sigma, (high - mu) / sigma
    if alpha > 0:  # work in the lower tail, where the cumulative distribution keeps its precision
        z = -ndtri(np.linspace(ndtr(-alpha), ndtr(-beta), n + 1))
    else:
        z = ndtri(np.linspace(ndtr(alpha), ndtr(beta), n + 1))
    edges = mu + sigma * z
    edges[0], edges[-1] = low, high
    if not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError(
            f"{axis}: a Gaussian of mu {mu:g}, sigma {sigma:g} cannot cut [{low:g}, {high:g}] into "
            f"{n} bins; pass a larger min_sigma, or check that the actions are normalised"
        )
    return np.asarray(edges, dtype=np.float64)


def truncated_gaussian_means(mu: float, sigma: float, edges: F64) -> F64:
    """(n,) mean of N(mu, sigma) inside each bin [edges[i], edges[i + 1]], in closed form.

    mu + sigma * (pdf(a) - pdf(b)) / (cdf(b) - cdf(a)) with a, b the standardised edges.
    """
    z = (edges - mu) / sigma
    a, b = z[:-1], z[1:]
    pdf = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    mass = np.where(a > 0, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))
    middle = 0.5 * (edges[:-1] + edges[1:])
    # Where a bin holds next to no mass or width, the quotient is all rounding.
    sound = (mass > 1e-290) & (b - a > 1e-6)
    means = np.where(sound, mu + sigma * (pdf[:-1] - pdf[1:]) / np.where(sound, mass, 1.0), middle)
    return np.asarray(np.clip(means, edges[:-1], edges[1:]), dtype=np.float64)
