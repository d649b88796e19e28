"""One scaling of K for both kinds of array, to the last bit as the two that there were before."""

import numpy as np
import pytest
import torch

from spatialvla_ft.data.cards.fields import Intrinsics
from spatialvla_ft.geometry.intrinsics import camera_matrix, scale_intrinsics

SCALES = [(224 / 640, 224 / 480), (1 / 3, 1.7), (1.0, 1.0)]


def matrices(*batch):
    """Not only pinholes: all nine numbers differ, so that a wrong row or column shows."""
    return np.random.default_rng(7).normal(100, 300, size=(*batch, 3, 3))


@pytest.mark.parametrize(("x", "y"), SCALES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_as_before(x, y, dtype):
    for K in matrices(50).astype(dtype):
        kept = K.copy()
        got = scale_intrinsics(K, x, y)
        wanted = np.asarray(K * np.array([[x], [y], [1.0]]))
        assert got.dtype == wanted.dtype == np.float64
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(K, kept)


@pytest.mark.parametrize(("x", "y"), SCALES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_torch_as_before(x, y, dtype):
    K = torch.as_tensor(matrices(5, 4)).to(dtype)
    kept = K.clone()
    factors = torch.tensor([x, y, 1.0], dtype=torch.float64)
    wanted = (K.double() * factors[:, None]).to(K.dtype)
    got = scale_intrinsics(K, x, y)
    assert got.dtype == dtype
    assert torch.equal(got, wanted)
    assert torch.equal(K, kept)


def test_gradients_pass():
    K = torch.as_tensor(matrices()).requires_grad_()
    scale_intrinsics(K, 0.5, 0.25).sum().backward()
    assert torch.equal(K.grad, torch.tensor([[0.5], [0.25], [1.0]]).double().expand(3, 3))


def test_a_card_s_camera_as_before():
    for fx, fy, cx, cy in np.random.default_rng(8).uniform(50, 900, size=(100, 4)):
        camera = Intrinsics(fx=fx, fy=fy, cx=cx, cy=cy, width=640, height=481)
        x, y = 225 / 640, 112 / 481
        wanted = np.array([[fx * x, 0, cx * x], [0, fy * y, cy * y], [0, 0, 1]], np.float64)
        got = camera.matrix(225, 112)
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == np.float64


def test_forms_that_datasets_store():
    wanted = [[7, 0, 3], [0, 8, 4], [0, 0, 1]]
    np.testing.assert_array_equal(camera_matrix([7, 8, 3, 4], "here"), wanted)
    np.testing.assert_array_equal(camera_matrix(np.ravel(wanted), "here"), wanted)
    with pytest.raises(ValueError, match=r"here: intrinsics are 9 numbers .* got shape \(5,\)"):
        camera_matrix(np.zeros(5), "here")
