"""Where the released action grid is deliberately not followed: its number, the right one, ours.

Items 5, 6, 10 and 12 of the list in docs/fidelity.md. The recorded grids stand for the released
code: our encoding and its decoding are id by id the same (test_grid_golden.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spatialvla_ft.actions import ActionGrid, adapt_embeddings, fit_gaussians

GOLDEN = Path(__file__).parents[1] / "golden"
AXES = ("theta", "phi", "r", "roll", "pitch", "yaw")
BRIDGE, PLUS = "bridge_sigma0.0", "spatialvla_plus_sigma0.5"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "actions.npz") as archive:
        return {name: archive[name] for name in archive.files}


def grid_of(golden, name):
    edges = {axis: golden[f"{name}/{axis}_bins"] for axis in AXES}
    return ActionGrid.from_boundaries(edges, decoding="midpoint")


# -------------------------------------------------------------------- 5. embedding adaptation


def smooth(a, b, c):
    return np.stack([np.sin(a) + 0.5 * c, np.cos(b), a * c, np.sin(b) * c], axis=-1)


def test_5_scrambled_axes_are_worse_than_no_adaptation_and_ours_is_better(golden):
    """Query points listed 'xy' (second axis slowest) for a table numbered 'ij' (first slowest)."""
    old, new = grid_of(golden, BRIDGE), ActionGrid.uniform()

    def table(grid, order):
        a, b, c = (grid.midpoints[axis] for axis in ("theta", "phi", "r"))
        rows = smooth(*np.meshgrid(a, b, c, indexing=order)).reshape(-1, 4)
        return np.concatenate([rows, np.zeros((grid.total - len(rows), 4))])

    before, right, scrambled = table(old, "ij"), table(new, "ij"), table(new, "xy")
    rows = slice(0, new.counts[0])
    ours = adapt_embeddings(torch.from_numpy(before), old, new).numpy()

    def error(guess):
        return float(np.sqrt(np.mean((guess - right)[rows] ** 2)))

    assert error(scrambled) > 1.2 * error(before)
    assert error(ours) < 0.4 * error(before)


def test_5_phi_is_circular(golden):
    """Replicating the last bin beyond +pi instead of going round misses a field that is periodic.

    The new grid's first midpoint lies nearer to -pi than the old grid's.
    """
    edges = {axis: golden[f"{BRIDGE}/{axis}_bins"] for axis in AXES}
    old = ActionGrid.from_boundaries(edges)
    new = ActionGrid.uniform(bins=(16, 64, 8, 16, 16, 16, 2))
    field = np.sin(old.midpoints["phi"])
    rows = np.broadcast_to(field[None, :, None], (16, 32, 8)).reshape(-1, 1)
    table = np.concatenate([rows, np.zeros((old.total - len(rows), 1))])
    ours = adapt_embeddings(table, old, new)[: new.counts[0]].reshape(16, 64, 8)[0, 0, 0]
    right, replicated = np.sin(new.midpoints["phi"][0]), field[0]
    assert abs(ours - right) < 0.5 * abs(replicated - right)


# -------------------------------------------------------------------- 6. ids that are no actions


@pytest.mark.parametrize("strange", [-1, 4095, 8193])
def test_6_an_id_of_another_type_is_an_error_and_was_an_extreme_action(golden, strange):
    """Clipped into its range, a missing rotation becomes the corner bin: -0.85 on each axis."""
    grid = grid_of(golden, PLUS)
    clipped = np.clip(strange, 4096, 8191)
    corner = np.asarray(grid.decode(np.array([[0, clipped, 8192]])))[0, 3:6]
    np.testing.assert_allclose(np.abs(corner), 0.85, atol=0.02)
    with pytest.raises(ValueError, match="id"):
        grid.decode(np.array([[0, strange, 8192]]))


# -------------------------------------------------------------------- 10. encoding and decoding


def test_10_standing_still_is_no_fixed_point_of_the_released_grid(golden):
    grid = grid_of(golden, PLUS)
    still = np.asarray(grid.decode(grid.encode(np.zeros((1, 7)))))[0]
    assert still[2] == pytest.approx(0.094, abs=5e-4)


def test_10_the_mean_of_a_bin_is_a_better_answer_than_its_midpoint(golden):
    """RMSE of the length of the motion, on the recorded actions and a grid fitted to them."""
    actions = golden["actions_f32"].clip(-1, 1)
    grid = ActionGrid.from_gaussians(fit_gaussians(actions))
    assert grid.decoding == "mean"
    truth = np.linalg.norm(actions[:, :3], axis=1)
    ids = grid.encode(actions)
    error = {
        mode: float(
            np.sqrt(
                np.mean((np.linalg.norm(grid.decode(ids, mode=mode)[:, :3], axis=1) - truth) ** 2)
            )
        )
        for mode in ("midpoint", "mean")
    }
    assert error["mean"] < error["midpoint"]


def test_10_phi_wraps_where_nothing_happens(golden):
    """y = +1e-9 and -1e-9 decode 0.247 apart: a property of every grid with an edge at pi.

    Kept, so that ids stay the released ones; its size is a bin, which finer grids make smaller.
    """
    grid = grid_of(golden, BRIDGE)
    actions = np.array([[-0.5, y, 0, 0, 0, 0, 0] for y in (1e-9, -1e-9)])
    y = np.asarray(grid.decode(grid.encode(actions)))[:, 1]
    np.testing.assert_allclose(y, [0.111, -0.136], atol=5e-4)
    finer = ActionGrid.uniform(bins=(16, 128, 8, 16, 16, 16, 2))
    y = np.asarray(finer.decode(finer.encode(actions)))[:, 1]
    assert np.abs(y).max() < 0.02


@pytest.mark.parametrize(("name", "count"), [(BRIDGE, 57), (PLUS, 265)])
def test_10_some_ids_lie_outside_the_cube_and_do_not_come_back(golden, name, count):
    """Their midpoints are clipped to +-1 on the way out; kept, ids are the released ones."""
    grid = grid_of(golden, name)
    ids = np.stack([np.arange(4096), np.full(4096, 4096), np.full(4096, 8192)], axis=1)
    back = grid.encode(np.asarray(grid.decode(ids)))
    lost = back[:, 0] != ids[:, 0]
    assert lost.sum() == count


def test_10_nan_is_an_error(golden):
    grid = grid_of(golden, BRIDGE)
    for row in golden["nan_f64"]:
        with pytest.raises(ValueError, match=r"is (nan|-?inf)"):
            grid.encode(row[None])


# -------------------------------------------------------------------- 12. min_sigma in the files


def test_12_the_bins_that_were_used_come_from_the_file_not_from_min_sigma(golden):
    """Bins made with min_sigma 0.5 under a file that says 0.0: refitting moves edges by 0.1."""
    from test_grid_golden import RELEASED

    stored = grid_of(golden, PLUS)
    believed = ActionGrid.from_gaussians(RELEASED[PLUS], min_sigma=0.0)
    assert max(np.abs(believed.edges[a] - stored.edges[a]).max() for a in AXES) > 0.05
    actions = golden["actions_f32"]
    changed = (believed.encode(actions) != golden[f"{PLUS}/ids"]).any(axis=1).mean()
    assert changed > 0.5
    np.testing.assert_array_equal(stored.encode(actions), golden[f"{PLUS}/ids"])
