"""The one rule for bad pixels: marked, kept out of means, and filled last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spatialvla_ft.data.decode import to_metres
from spatialvla_ft.geometry.depth_maps import usable
from spatialvla_ft.geometry.holes import fill_holes, mark_unknown, pool_depth

VALUES = [0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, 1e-6, 0.5, 3e38]
GOOD = [False] * 6 + [True] * 3


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_which_pixels_count(kind):
    found = usable(kind(VALUES))
    assert np.asarray(found).tolist() == GOOD


def test_readers_and_torch_mark_the_same():
    values = np.array(VALUES, np.float32)
    marked = mark_unknown(torch.from_numpy(values)).numpy()
    wanted = [v if good else 0.0 for v, good in zip(values, GOOD, strict=True)]
    np.testing.assert_array_equal(marked, np.array(wanted, np.float32))
    np.testing.assert_array_equal(to_metres(values, 1.0), marked)


@pytest.fixture
def broken():
    rng = np.random.default_rng(8)
    depth = rng.uniform(0.4, 2, (2, 6, 8)).astype(np.float32)
    depth[0, :2, :2] = [[0, np.nan], [np.inf, -1]]
    depth[0, 3, 5] = 0
    depth[1, 5] = np.nan
    return depth


def test_filling_gives_unknown_pixels_the_median_and_leaves_the_rest(broken):
    got = fill_holes(torch.from_numpy(broken)).numpy()
    for b in range(2):
        known = [v for v in broken[b].ravel().tolist() if np.isfinite(v) and v > 0]
        low_median = sorted(known)[(len(known) - 1) // 2]
        for i in range(6):
            for j in range(8):
                value = broken[b, i, j]
                expected = value if np.isfinite(value) and value > 0 else low_median
                assert got[b, i, j] == pytest.approx(expected, rel=1e-6)


def test_marked_or_not_a_hole_pools_the_same(broken):
    depth = torch.from_numpy(broken[:, :, :6])
    torch.testing.assert_close(pool_depth(depth, 3), pool_depth(mark_unknown(depth), 3))


@pytest.mark.parametrize("rule", [fill_holes, lambda d: pool_depth(d, 2)])
def test_nothing_known_is_an_error(rule):
    depth = torch.ones(3, 4, 4)
    depth[1] = 0
    with pytest.raises(ValueError, match=r"image\(s\) \[1\] .* no valid pixel"):
        rule(depth)
