"""Back-projection and frequency encoding against NumPy loops."""

from __future__ import annotations

import numpy as np
import torch

from spatialvla_ft.geometry.backprojection import backproject, cell_centres
from spatialvla_ft.geometry.frequency import frequency_encoding
from spatialvla_ft.geometry.intrinsics import scale_intrinsics

K = np.array([[210.0, 3.0, 97.0], [0.0, 180.0, 141.0], [0.0, 0.0, 1.0]])


def project(K, point):
    u, v, w = K @ point
    return u / w, v / w


def test_cells_tile_the_image_row_by_row():
    uv = cell_centres(12, 4.0)
    expected = [(u, v) for v in (2.0, 6.0, 10.0) for u in (2.0, 6.0, 10.0)]
    assert uv.tolist() == [list(pair) for pair in expected]


def test_projecting_a_backprojected_pixel_returns_it():
    uv = cell_centres(224, 7.0)
    rng = np.random.default_rng(0)
    depth = torch.as_tensor(rng.uniform(0.3, 3.0, (2, len(uv))), dtype=torch.float32)
    Ks = torch.as_tensor(np.stack([K, 1.3 * K / np.array([[1], [1], [1.3]])]))
    points = backproject(uv, depth, Ks)
    for b in range(2):
        for i in range(0, len(uv), 37):
            u, v = project(Ks[b].numpy(), points[b, i].double().numpy())
            assert abs(u - uv[i, 0]) < 1e-3
            assert abs(v - uv[i, 1]) < 1e-3
            assert abs(points[b, i, 2] - depth[b, i]) < 1e-6


def test_float32_whatever_comes_in():
    uv = cell_centres(56, 7.0)
    depth = torch.ones(1, len(uv), dtype=torch.bfloat16)
    exact = backproject(uv, torch.ones(1, len(uv)), torch.as_tensor(K)[None])
    assert torch.equal(backproject(uv, depth, torch.as_tensor(K)[None]), exact)
    assert exact.dtype == torch.float32


def test_mixed_precision_does_not_reach_geometry():
    uv = cell_centres(224, 7.0)
    depth, Ks = torch.full((1, len(uv)), 1.7), torch.as_tensor(K)[None]
    exact = backproject(uv, depth, Ks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(backproject(uv, depth, Ks), exact)


def test_a_resized_camera_sees_the_same_point_at_the_scaled_pixel():
    scaled = scale_intrinsics(torch.as_tensor(K), 224 / 640, 224 / 480).numpy()
    point = np.array([0.2, -0.1, 1.7])
    u, v = project(K, point)
    assert np.allclose(project(scaled, point), (u * 224 / 640, v * 224 / 480))


def test_frequency_encoding_against_a_loop():
    x = np.random.default_rng(1).normal(size=(3, 5))
    ours = frequency_encoding(torch.as_tensor(x), 4).numpy()
    for row in range(3):
        expected = []
        for value in x[row]:
            expected.append(value)
            expected += [np.sin(2**k * value) for k in range(4)]
            expected += [np.cos(2**k * value) for k in range(4)]
        assert np.allclose(ours[row], expected, atol=1e-5)


def test_gradients_flow_to_depth():
    uv = cell_centres(4, 1.0)
    depth = torch.ones(1, 16, requires_grad=True)
    backproject(uv, depth, torch.as_tensor(K)[None])[..., 2].sum().backward()
    assert torch.allclose(depth.grad, torch.ones(1, 16))
