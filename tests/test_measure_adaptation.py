"""What the adaptation experiments measure with."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from spatialvla_ft.actions import ActionGrid

BINS = (5, 7, 3, 4, 6, 2, 2)
FITS = {
    axis: {"mu": 0.1 * i, "sigma": 0.4 + 0.1 * i}
    for i, axis in enumerate(("theta", "phi", "r", "roll", "pitch", "yaw"))
}


@pytest.fixture(scope="module")
def tool():
    file = Path(__file__).parents[1] / "tools" / "measure_adaptation.py"
    spec = importlib.util.spec_from_file_location("measure_adaptation", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def grid():
    return ActionGrid.from_gaussians(FITS, bins=BINS)


def test_a_bin_holds_as_much_of_space_as_points_say(tool, grid):
    """Share of random points of the cube in a bin, times the cube's volume; rotations likewise."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-1, 1, (400_000, 6)), np.zeros(400_000)])
    ids = grid.encode(points)
    volumes = np.exp(tool.log_volumes(grid, points[:2000]))
    lengths = np.linalg.norm(points[:2000, :3], axis=1)
    inside = grid.edges["r"][np.searchsorted(grid.edges["r"][1:-1], lengths) + 1] <= 1
    assert 50 < inside.sum() < 2000
    for row in np.flatnonzero(inside)[:20]:
        translation = 8 * (ids[:, 0] == ids[row, 0]).mean()
        rotation = 8 * (ids[:, 1] == ids[row, 1]).mean()
        assert volumes[row] == pytest.approx(translation * rotation, rel=0.15)


def test_bins_that_moved(tool, grid):
    assert tool.moved(grid, grid) == {"translation": 0, "rotation": 0, "gripper": 0}
    other = ActionGrid.uniform(bins=BINS)
    expected = []
    for axes in (("theta", "phi", "r"), ("roll", "pitch", "yaw")):
        stays = []
        for axis in axes:
            old, new = grid.edges[axis], other.midpoints[axis]
            stays.append([old[i] <= value < old[i + 1] for i, value in enumerate(new)])
        kept = sum(a and b and c for a in stays[0] for b in stays[1] for c in stays[2])
        expected.append(1 - kept / math.prod(len(s) for s in stays))
    found = tool.moved(grid, other)
    assert [found["translation"], found["rotation"]] == pytest.approx(expected, abs=1e-4)
    assert 0 < expected[0] < 1


def test_every_run_has_a_name_of_its_own(tool):
    runs = tool.all_runs(list(tool.EXPERIMENTS))
    assert len({run.name for run in runs}) == len(runs) == 15 + 7 + 12 + 15
