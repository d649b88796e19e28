import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spatialvla_ft.actions.axes import spherical_from_xyz
from spatialvla_ft.geometry.spherical import cartesian_to_spherical, spherical_to_cartesian

POINTS = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 5, 3)))


def test_against_rotations():
    """(theta, phi, r) is r e_z turned by theta about y, then by phi about z."""
    spherical = torch.tensor([[0.3, 1.2, 2.0], [2.9, -3.0, 0.5], [math.pi / 2, 0.0, 1.0]]).double()
    for row, point in zip(spherical, spherical_to_cartesian(spherical), strict=True):
        theta, phi, r = row.tolist()
        turned = Rotation.from_euler("yz", [theta, phi]).apply([0, 0, r])
        np.testing.assert_allclose(point, turned, atol=1e-12)


def test_axes():
    points = torch.eye(3, dtype=torch.float64)
    half = math.pi / 2
    expected = torch.tensor([[half, 0, 1], [half, half, 1], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(cartesian_to_spherical(points), expected)
    assert cartesian_to_spherical(torch.zeros(3)).tolist() == [0, 0, 0]


def test_shape_and_dtype():
    assert cartesian_to_spherical(POINTS).shape == POINTS.shape
    assert spherical_to_cartesian(POINTS.float()).dtype == torch.float32


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_round_trip(point):
    xyz = torch.tensor(point, dtype=torch.float64)
    spherical = cartesian_to_spherical(xyz)
    assert 0 <= spherical[0] <= math.pi
    assert -math.pi <= spherical[1] <= math.pi
    torch.testing.assert_close(spherical_to_cartesian(spherical), xyz, atol=1e-9, rtol=0)


def test_gradient():
    points = POINTS[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(cartesian_to_spherical, points)
    assert torch.autograd.gradcheck(spherical_to_cartesian, points)


def test_small_values_keep_their_angle():
    tiny = torch.tensor([1e-30, 1e-30, 1e-30], dtype=torch.float32)
    torch.testing.assert_close(
        cartesian_to_spherical(tiny)[:2], torch.tensor([math.acos(1 / math.sqrt(3)), math.pi / 4])
    )


def test_wrong_width():
    with pytest.raises(ValueError, match="xyz must end in a dimension of size 3"):
        cartesian_to_spherical(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="spherical must end in a dimension of size 3"):
        spherical_to_cartesian(torch.zeros(()))


def test_the_grid_uses_the_same_convention():
    points = POINTS.reshape(-1, 3)
    np.testing.assert_allclose(
        np.stack(spherical_from_xyz(points.numpy()), axis=-1),
        cartesian_to_spherical(points),
        atol=1e-12,
    )
