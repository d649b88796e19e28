"""Cutting a grid's own distribution into other numbers of bins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import truncnorm

from spatialvla_ft.actions import ActionGrid
from spatialvla_ft.actions.grid_io import load_grid
from spatialvla_ft.actions.rebin import gaussian_of_edges, rebin

AXES = ("theta", "phi", "r", "roll", "pitch", "yaw")
FITS = {
    "theta": {"mu": 1.9, "sigma": 0.78},
    "phi": {"mu": 0.1, "sigma": 2.4},  # most of it is cut away
    "r": {"mu": -0.3, "sigma": 0.5},  # its middle lies outside the range
    "roll": {"mu": 0.0, "sigma": 0.05},
    "pitch": {"mu": 0.97, "sigma": 0.2},
    "yaw": {"mu": -0.2, "sigma": 3.0},
}
BINS = (16, 32, 8, 5, 3, 7, 2)


@pytest.fixture(scope="module")
def grid():
    return ActionGrid.from_gaussians(FITS, bins=BINS, decoding="midpoint")


def scipy_edges(axis, low, high, n):
    mu, sigma = FITS[axis]["mu"], FITS[axis]["sigma"]
    frozen = truncnorm((low - mu) / sigma, (high - mu) / sigma, mu, sigma)
    return frozen.ppf(np.linspace(0, 1, n + 1)), frozen


def mean_between(frozen, low, high):
    """By the trapezoid rule."""
    x = np.linspace(low, high, 20_001)
    weight = frozen.pdf(x)
    return np.trapezoid(x * weight, x) / np.trapezoid(weight, x)


def test_edges_give_their_gaussian_away(grid):
    for axis in AXES:
        mu, sigma = gaussian_of_edges(grid.edges[axis], axis=axis)
        assert mu == pytest.approx(FITS[axis]["mu"], abs=1e-5), axis
        assert sigma == pytest.approx(FITS[axis]["sigma"], rel=1e-5), axis


def test_new_bins_have_equal_probability_and_mean_of_the_same_gaussian(grid):
    new = rebin(grid, (7, 12, 9, 4, 16, 2, 2))
    assert new.bins == (7, 12, 9, 4, 16, 2, 2)
    assert (new.kind, new.decoding) == ("gaussian", "midpoint")
    for axis in AXES:
        edges = new.edges[axis]
        expected, frozen = scipy_edges(axis, edges[0], edges[-1], len(edges) - 1)
        np.testing.assert_allclose(edges, expected, atol=1e-6)
        means = [mean_between(frozen, *pair) for pair in pairwise(edges)]
        np.testing.assert_allclose(new.means[axis], means, atol=1e-5)


def test_axes_that_keep_their_number_keep_their_edges_and_means(grid):
    rng = np.random.default_rng(2)
    actions = rng.uniform(-1, 1, (500, 7))
    fitted = grid.with_means(actions)
    new = rebin(fitted, (16, 20, 8, 5, 3, 9, 2))
    for axis in AXES:
        kept = axis not in ("phi", "yaw")
        assert np.array_equal(new.edges[axis], fitted.edges[axis]) == kept
        assert np.array_equal(new.means[axis], fitted.means[axis]) == kept
    assert rebin(fitted, BINS) is fitted


def test_the_released_grid_is_cut_from_the_published_gaussians(golden_checkpoint):
    """sigma 0.5 is the floor that the released mixture put on r and the rotation."""
    released = load_grid(golden_checkpoint)
    for axis in ("r", "roll", "pitch", "yaw"):
        assert gaussian_of_edges(released.edges[axis])[1] == pytest.approx(0.5, rel=1e-9)


def test_uniform_stays_uniform():
    new = rebin(ActionGrid.uniform(bins=BINS), (5, 4, 3, 2, 1, 6, 2))
    assert new == ActionGrid.uniform(bins=(5, 4, 3, 2, 1, 6, 2))


def test_refusals(grid):
    actions = np.random.default_rng(0).uniform(-1, 1, (300, 7))
    quantile = ActionGrid.from_quantiles(actions, bins=BINS)
    with pytest.raises(ValueError, match=r"a quantile grid cannot be cut into .* grids fit"):
        rebin(quantile, (8, 8, 8, 5, 3, 7, 2))
    assert rebin(quantile, BINS) is quantile
    zero = ActionGrid.from_gaussians(FITS, bins=(16, 32, 8, 5, 3, 7, 2), zero_bin=True)
    with pytest.raises(ValueError, match="with zero bins"):
        rebin(zero, (8, 8, 8, 5, 3, 7, 2))
    two = ActionGrid.from_gaussians(FITS, bins=(2, 32, 8, 5, 3, 7, 2))
    with pytest.raises(ValueError, match=r"theta has 2 bins.*keep their number"):
        rebin(two, (4, 32, 8, 5, 3, 7, 2))
    bent = {axis: edges.copy() for axis, edges in grid.edges.items()}
    bent["phi"][9] += 0.02
    mislabelled = ActionGrid.from_boundaries(bent, kind="gaussian")
    with pytest.raises(ValueError, match="phi: no Gaussian has these edges"):
        rebin(mislabelled, (16, 16, 8, 5, 3, 7, 2))
    with pytest.raises(ValueError, match="bins"):
        rebin(grid, (16, 32, 8))
