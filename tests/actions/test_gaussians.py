import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from spatialvla_ft.actions import ActionGrid, fit_gaussians
from spatialvla_ft.actions.gaussians import truncated_gaussian_edges, truncated_gaussian_means


def test_fit_against_a_python_loop():
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 7))
    columns = {name: [] for name in ("theta", "phi", "r", "z", "pitch")}
    for x, y, z, _roll, pitch, _yaw, _gripper in actions.tolist():
        r = math.dist((0, 0, 0), (x, y, z))
        columns["theta"].append(math.acos(z / r))
        columns["phi"].append(math.atan2(y, x))
        columns["r"].append(r)
        columns["z"].append(z)
        columns["pitch"].append(pitch)
    fit = fit_gaussians(actions)
    assert set(fit) == {"x", "y", "z", "theta", "phi", "r", "roll", "pitch", "yaw"}
    for name, values in columns.items():
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        assert fit[name]["mu"] == pytest.approx(mean, abs=1e-12)
        assert fit[name]["sigma"] == pytest.approx(math.sqrt(variance), abs=1e-12)


def test_fit_torch_and_numpy_agree():
    actions = np.random.default_rng(1).uniform(-1, 1, (20, 7)).astype(np.float32)
    assert fit_gaussians(torch.from_numpy(actions)) == fit_gaussians(actions)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((0, 7)), "no rows"),
        (np.zeros((3, 6)), r"shape \(n, 7\)"),
        (np.zeros((2, 3, 7)), "Reshape chunks"),
        (np.full((2, 7), np.nan), r"\[0, 0\] \(x\) is nan"),
    ],
)
def test_fit_refuses(actions, message):
    with pytest.raises(ValueError, match=message):
        fit_gaussians(actions)


# mu, sigma, low, high: centred, wide, one-sided tails, far outside the range
CASES = [
    (0.0, 0.3, -1.0, 1.0),
    (2.18, 0.78, 0.0, math.pi),
    (0.1, 5.0, -1.0, 1.0),
    (0.55, 0.3, 0.0, math.sqrt(3)),
    (3.0, 0.3, -1.0, 1.0),
    (-3.0, 0.3, -1.0, 1.0),
    (0.02, 0.05, -1.0, 1.0),
]


@pytest.mark.parametrize(("mu", "sigma", "low", "high"), CASES)
def test_edges_have_equal_mass(mu, sigma, low, high):
    edges = truncated_gaussian_edges(mu, sigma, low, high, 11)
    truncated = stats.truncnorm((low - mu) / sigma, (high - mu) / sigma, mu, sigma)
    np.testing.assert_allclose(truncated.cdf(edges), np.linspace(0, 1, 12), atol=1e-9)
    assert (edges[0], edges[-1]) == (low, high)


@pytest.mark.parametrize(("mu", "sigma", "low", "high"), CASES)
def test_means_against_numerical_integration(mu, sigma, low, high):
    edges = truncated_gaussian_edges(mu, sigma, low, high, 8)
    means = truncated_gaussian_means(mu, sigma, edges)
    for a, b, mean in zip(edges[:-1], edges[1:], means, strict=True):
        near = min(max(mu, a), b)  # scale by the density's peak in the bin, or tails vanish

        def density(x, near=near):
            return math.exp(-0.5 * ((x - mu) ** 2 - (near - mu) ** 2) / sigma**2)

        points = [near] if a < near < b else None
        mass = integrate.quad(density, a, b, epsabs=0, epsrel=1e-11, points=points)[0]
        moment = integrate.quad(
            lambda x, near=near: x * density(x, near), a, b, epsabs=1e-14, points=points
        )[0]
        assert mean == pytest.approx(moment / mass, abs=1e-8)


def test_mean_is_not_the_midpoint_in_the_tails():
    edges = truncated_gaussian_edges(0.0, 0.3, -1.0, 1.0, 16)
    means = truncated_gaussian_means(0.0, 0.3, edges)
    middle = 0.5 * (edges[:-1] + edges[1:])
    assert means[0] > middle[0] + 0.1
    assert means[-1] < middle[-1] - 0.1


@settings(max_examples=60, deadline=None)
@given(
    mu=st.floats(-1.5, 1.5),
    sigma=st.floats(0.05, 10),
    n=st.integers(1, 40),
)
def test_edges_increase_and_means_lie_inside(mu, sigma, n):
    edges = truncated_gaussian_edges(mu, sigma, -1.0, 1.0, n)
    means = truncated_gaussian_means(mu, sigma, edges)
    assert (np.diff(edges) > 0).all()
    assert (means >= edges[:-1]).all()
    assert (means <= edges[1:]).all()


GOOD = {axis: {"mu": 0.5, "sigma": 0.4} for axis in ("theta", "phi", "r", "roll", "pitch", "yaw")}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"roll": {"mu": 0.0, "sigma": 0.0}}, {}, "roll: sigma is 0.0.*min_sigma"),
        ({"roll": {"mu": 0.0, "sigma": math.nan}}, {}, "roll: mu 0.0 and sigma nan"),
        ({"yaw": {"mu": 0.5}}, {}, "params lacks 'yaw'"),
        ({"r": {"mu": 90.0, "sigma": 0.01}}, {}, "r: a Gaussian of mu 90"),
        ({}, {"min_sigma": -1}, "min_sigma is -1"),
        ({}, {"bins": (16, 32, 8)}, "bins needs 7 counts"),
        ({}, {"bins": (16, 32, 8, 16, 16, 16, 3)}, r"bins\[6\] \(gripper\) must be 2"),
        ({}, {"bins": (16, 32, 0, 16, 16, 16, 2)}, r"bins\[2\] \(r\) must be a positive"),
        ({}, {"decoding": "median"}, "'median'; it must be 'mean' or 'midpoint'"),
    ],
)
def test_from_gaussians_refuses(change, options, message):
    with pytest.raises(ValueError, match=message):
        ActionGrid.from_gaussians(GOOD | change, **options)


def test_min_sigma_saves_a_constant_dimension():
    grid = ActionGrid.from_gaussians(GOOD | {"roll": {"mu": 0.0, "sigma": 0.0}}, min_sigma=0.2)
    other = ActionGrid.from_gaussians(GOOD | {"roll": {"mu": 0.0, "sigma": 0.2}})
    np.testing.assert_array_equal(grid.edges["roll"], other.edges["roll"])
