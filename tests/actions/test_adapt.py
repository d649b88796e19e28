"""Spatial embedding adaptation against SciPy's interpolator, on sizes that no axis shares."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from spatialvla_ft.actions import ActionGrid, adapt_embeddings

GROUPS = (("theta", "phi", "r"), ("roll", "pitch", "yaw"))
FITS = {
    "theta": {"mu": 2.18, "sigma": 0.78},
    "phi": {"mu": 0.14, "sigma": 1.79},
    "r": {"mu": 0.55, "sigma": 0.30},
    "roll": {"mu": -0.01, "sigma": 0.31},
    "pitch": {"mu": 0.08, "sigma": 0.33},
    "yaw": {"mu": 0.01, "sigma": 0.30},
}
PAIRS = {
    "same sizes": (ActionGrid.uniform(), ActionGrid.from_gaussians(FITS)),
    "grow": (
        ActionGrid.from_gaussians(FITS, bins=(5, 9, 3, 4, 6, 7, 2)),
        ActionGrid.uniform(bins=(16, 32, 8, 9, 5, 11, 2)),
    ),
    "shrink": (
        ActionGrid.from_gaussians(FITS, bins=(16, 32, 8, 12, 10, 8, 2)),
        ActionGrid.from_gaussians(FITS, bins=(7, 5, 6, 3, 4, 2, 2), min_sigma=0.5),
    ),
    "one bin": (
        ActionGrid.uniform(bins=(1, 4, 3, 1, 2, 5, 2)),
        ActionGrid.uniform(bins=(3, 1, 1, 4, 1, 2, 2)),
    ),
}


@pytest.fixture(params=sorted(PAIRS))
def pair(request):
    return PAIRS[request.param]


def rows_of(grid, field, *, centres="midpoints"):
    """Table of a grid whose rows are `field(a, b, c)` at the bins' midpoints, d channels."""
    parts = []
    for group in GROUPS:
        axes = [getattr(grid, centres)[axis] for axis in group]
        parts.append([field(a, b, c) for a in axes[0] for b in axes[1] for c in axes[2]])
    gripper = [field(9.0, 9.0, 9.0), field(8.0, 8.0, 8.0)]
    return np.array(parts[0] + parts[1] + gripper)


def scipy_adapt(table, old, new):
    """RegularGridInterpolator; phi wrapped by hand, the other axes clamped by hand."""
    parts, start = [], 0
    for group in GROUPS:
        axes = [old.midpoints[axis] for axis in group]
        shape = [len(axis) for axis in axes]
        field = table[start : start + math.prod(shape)].reshape(*shape, -1)
        start += math.prod(shape)
        if group[1] == "phi":
            phi = axes[1]
            axes[1] = np.concatenate([[phi[-1] - 2 * np.pi], phi, [phi[0] + 2 * np.pi]])
            field = np.concatenate([field[:, -1:], field, field[:, :1]], axis=1)
        for i, axis in enumerate(axes):
            if len(axis) == 1:
                axes[i] = np.array([axis[0], axis[0] + 1])
                field = np.repeat(field, 2, axis=i)
        targets = [
            np.clip(new.midpoints[name], axis[0], axis[-1])
            for name, axis in zip(group, axes, strict=True)
        ]
        points = np.array([(a, b, c) for a in targets[0] for b in targets[1] for c in targets[2]])
        parts.append(RegularGridInterpolator(axes, field)(points))
    return np.concatenate([*parts, table[start:]])


def test_against_scipy(pair):
    old, new = pair
    table = np.random.default_rng(0).normal(size=(old.total, 5))
    adapted = adapt_embeddings(table, old, new)
    assert adapted.shape == (new.total, 5)
    np.testing.assert_allclose(adapted, scipy_adapt(table, old, new), atol=1e-12)


def test_a_mixed_up_axis_would_show():
    """The known bug: reading the table with theta and phi exchanged."""
    old, new = PAIRS["same sizes"]
    table = rows_of(old, lambda a, b, c: [math.sin(a) * math.cos(b) + c])
    n_theta, n_phi, n_r = old.bins[:3]
    mixed = table.copy()
    mixed[:4096] = table[:4096].reshape(n_phi, n_theta, n_r, 1).swapaxes(0, 1).reshape(4096, 1)
    right = rows_of(new, lambda a, b, c: [math.sin(a) * math.cos(b) + c])
    good = np.abs(adapt_embeddings(table, old, new) - right)[:4096].mean()
    bad = np.abs(adapt_embeddings(mixed, old, new) - right)[:4096].mean()
    kept = np.abs(table - right)[:4096].mean()
    assert good < 0.05
    assert good < 0.2 * kept  # better than no adaptation, which the released code is not
    assert bad > 5 * good


def test_linear_field_is_exact_inside():
    old, new = PAIRS["grow"]

    def field(a, b, c):
        return [1 + 2 * a - 3 * b + 5 * c, a + b + c]

    adapted = adapt_embeddings(rows_of(old, field), old, new)
    expected = rows_of(new, field)
    inside, start = [], 0
    for group in GROUPS:
        spans = [(old.midpoints[axis][0], old.midpoints[axis][-1]) for axis in group]
        axes = [new.midpoints[axis] for axis in group]
        for a in axes[0]:
            for b in axes[1]:
                for c in axes[2]:
                    ok = all(lo <= v <= hi for v, (lo, hi) in zip((a, b, c), spans, strict=True))
                    inside.append(ok)
        start += math.prod(len(axis) for axis in axes)
    inside = np.array(inside)
    assert inside[:4096].sum() > 1000
    assert inside[4096:].sum() > 50
    np.testing.assert_allclose(adapted[:start][inside], expected[:start][inside], atol=1e-12)


def test_outside_clamps():
    old, new = PAIRS["grow"]
    table = rows_of(old, lambda a, b, c: [c])
    adapted = adapt_embeddings(table, old, new)[:4096].reshape(16, 32, 8)
    limits = old.midpoints["r"][[0, -1]]
    np.testing.assert_allclose(
        adapted[3, 4], np.clip(new.midpoints["r"], *limits), rtol=1e-12, atol=0
    )
    assert (new.midpoints["r"] > limits[1]).any()


def test_phi_is_periodic():
    """A field of cos(phi) and sin(phi), through the seam at +-pi."""
    old = ActionGrid.uniform(bins=(2, 40, 2, 2, 2, 2, 2))
    edges = {**old.edges, "phi": np.array([-np.pi, -np.pi + 1e-3, np.pi - 1e-3, np.pi])}
    new = ActionGrid.from_boundaries(edges)
    table = rows_of(old, lambda a, b, c: [math.cos(b), math.sin(b)])
    at_seam = adapt_embeddings(table, old, new)[: 2 * 3 * 2].reshape(2, 3, 2, 2)[0, [0, 2], 0]
    np.testing.assert_allclose(at_seam[:, 0], -1, atol=0.01)
    np.testing.assert_allclose(at_seam[:, 1], 0, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    old, new = PAIRS["shrink"]
    table = torch.randn(old.total, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    adapted = adapt_embeddings(table, old, new)
    assert adapted.dtype == dtype
    # computed in float32 at least and rounded once
    exact = torch.from_numpy(scipy_adapt(table.double().numpy(), old, new))
    step = torch.finfo(dtype).eps
    assert ((adapted.double() - exact).abs() <= exact.abs() * step * 0.51 + 1e-6).all()
    assert not adapted.requires_grad


def test_numpy_and_torch_agree():
    old, new = PAIRS["grow"]
    table = np.random.default_rng(1).normal(size=(old.total, 3)).astype(np.float32)
    adapted = adapt_embeddings(table, old, new)
    assert isinstance(adapted, np.ndarray)
    assert adapted.dtype == np.float32
    parameter = torch.nn.Parameter(torch.from_numpy(table))
    np.testing.assert_array_equal(adapted, adapt_embeddings(parameter, old, new).numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_grids_bit_by_bit(dtype):
    old = ActionGrid.from_gaussians(FITS)
    same = ActionGrid.from_boundaries(old.edges, decoding="midpoint")
    table = torch.randn(old.total, 4).to(dtype)
    adapted = adapt_embeddings(table, old, same)
    assert torch.equal(adapted, table)
    assert adapted.data_ptr() != table.data_ptr()
    moved = adapt_embeddings(table, old, ActionGrid.uniform())
    assert not torch.equal(moved[:-2], table[:-2])


def test_gripper_rows_are_copied(pair):
    old, new = pair
    table = np.random.default_rng(2).normal(size=(old.total, 3))
    np.testing.assert_array_equal(adapt_embeddings(table, old, new)[-2:], table[-2:])


def test_midpoints_count_not_means():
    old, new = PAIRS["shrink"]
    table = np.random.default_rng(3).normal(size=(old.total, 2))
    flat = ActionGrid.from_boundaries(new.edges)
    np.testing.assert_array_equal(
        adapt_embeddings(table, old, new), adapt_embeddings(table, old, flat)
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((8193, 4)), r"shape \(8194, d\)"),
        (np.zeros(8194), r"shape \(8194, d\)"),
        (np.zeros((8194, 4), dtype=np.int64), "floating-point"),
    ],
)
def test_refuses(table, message):
    old, new = PAIRS["same sizes"]
    with pytest.raises(ValueError, match=message):
        adapt_embeddings(table, old, new)
