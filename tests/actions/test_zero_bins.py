"""No motion is represented exactly, whatever the kind of grid and the action space."""

import json

import numpy as np
import pytest
import torch

from spatialvla_ft.actions import ActionGrid, fit_gaussians
from spatialvla_ft.actions.fit import KINDS, fit_grid
from spatialvla_ft.actions.grid_io import from_processor_config, to_processor_config
from spatialvla_ft.actions.normalise import ActionStatistics, normalise, unnormalise
from spatialvla_ft.actions.spaces import (
    end_effector_delta,
    joint_space,
    translation_delta,
    two_arms_delta,
)

SPACES = {
    "one arm": end_effector_delta(),
    "two arms": two_arms_delta(),
    "joint changes": joint_space(6, delta=True),
    "no rotation": translation_delta(),
}


def actions_of(space, count=3000, seed=0):
    rng = np.random.default_rng(seed)
    moves = rng.normal(0.05, 0.3, (count, space.dim))
    moves[rng.random(count) < 0.3] = 0.0
    moves[:, ~space.deltas] = rng.integers(0, 2, (count, (~space.deltas).sum()))
    return moves.clip(-1, 1)


@pytest.fixture(params=SPACES)
def space(request):
    return SPACES[request.param]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_still_is_exactly_still(space, kind):
    actions = actions_of(space)
    grid = fit_grid(kind, actions, space=space, zero_bin=True)
    saved = from_processor_config(json.loads(json.dumps(to_processor_config(grid))))
    for one in (grid, saved):
        assert one.zero_bin
        for rows in (1, 50):
            still = np.zeros((rows, space.dim))
            still[:, space.deltas] = np.random.default_rng(0).uniform(
                -5e-4, 5e-4, (rows, space.deltas.sum())
            )
            for mode in ("mean", "midpoint"):
                decoded = one.decode(one.encode(still), mode=mode)
                assert (decoded[:, space.deltas] == 0).all()
                assert not np.signbit(decoded[:, space.deltas]).any()
    plain = fit_grid(kind, actions, space=space)
    assert plain != grid
    assert plain.bins == grid.bins


def test_only_the_zero_bin_is_still(kind):
    grid = fit_grid(kind, actions_of(SPACES["one arm"]), zero_bin=True)
    ids = np.tile(grid.offsets, (max(grid.counts), 1))
    for column, count in enumerate(grid.counts):
        ids[:count, column] += np.arange(count)
    decoded = grid.decode(ids)
    assert (np.linalg.norm(decoded[: grid.counts[0], :3], axis=1) == 0).sum() == 16 * 32
    for axis in (3, 4, 5):
        assert (decoded[: grid.counts[1], axis] == 0).sum() == 16 * 16


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_the_edge_is_halfway_to_the_next_value(kind):
    actions = actions_of(SPACES["one arm"])
    if kind == "gaussian":
        grid = ActionGrid.from_gaussians(fit_gaussians(actions), zero_bin=True)
    else:
        grid = ActionGrid.uniform(zero_bin=True)
    for axis in ("r", "roll", "pitch", "yaw"):
        at = int(np.flatnonzero(grid.means[axis] == 0)[0])
        eps = grid.edges[axis][at + 1]
        beside = np.abs(np.delete(grid.means[axis], at)).min()
        assert eps == pytest.approx(beside / 2, abs=1e-6)
        assert eps > 1e-2
        if axis != "r":
            assert grid.edges[axis][at] == -eps


def test_quantile_bins_keep_their_counts():
    """Beside the zero bin the others still hold equal numbers, so the option costs one bin."""
    rng = np.random.default_rng(1)
    actions = rng.normal(0, 0.3, (8000, 7)).clip(-0.99, 0.99)
    grid = ActionGrid.from_quantiles(actions, zero_bin=True)
    counts = np.histogram(actions[:, 4], grid.edges["pitch"])[0]
    assert counts.min() > 0.6 * 500
    assert counts.max() < 1.4 * 500


def test_nearly_all_zeros():
    actions = np.zeros((500, 7))
    actions[:20, :6] = np.random.default_rng(2).uniform(-1, 1, (20, 6))
    for kind in ("quantile", "uniform"):
        grid = fit_grid(kind, actions, zero_bin=True)
        assert not grid.decode(grid.encode(np.zeros((1, 7))))[0, :6].any()


def test_no_motion_of_the_robot_survives_the_whole_way():
    """Through symmetric statistics, raw zeros come back as raw zeros; a plain robot drifts."""
    space = end_effector_delta()
    rng = np.random.default_rng(3)
    raw = (rng.normal(0.004, 0.01, (4000, 7)) * [1, 2, 0.5, 1e-3, 1e-3, 9, 1]).astype(np.float32)
    raw[:, 6] = rng.integers(0, 2, 4000)
    low, high = np.quantile(raw.astype(np.float64), [0.01, 0.99], axis=0)
    plain = ActionStatistics(
        raw.mean(0), raw.std(0), raw.min(0), raw.max(0), low, high, np.arange(7) < 6
    )
    still = np.zeros((1, 7), np.float32)

    def drift(statistics, zero_bin):
        grid = fit_grid("quantile", normalise(raw, statistics), zero_bin=zero_bin)
        return unnormalise(grid.decode(grid.encode(normalise(still, statistics))), statistics)

    symmetric = plain.symmetric(space.deltas)
    assert (symmetric.q01[:6] == -symmetric.q99[:6]).all()
    assert (symmetric.q99[6], symmetric.q01[6]) == (plain.q99[6], plain.q01[6])
    assert not drift(symmetric, zero_bin=True)[0, :6].any()
    assert drift(plain, zero_bin=False)[0, :6].any()
    assert (symmetric.q99 >= plain.q99 - 1e-12).all()


def test_torch_too():
    grid = ActionGrid.uniform(zero_bin=True)
    assert not grid.decode(grid.encode(torch.zeros(2, 7))).any()


def test_refusals():
    with pytest.raises(ValueError, match="leave zero_bin off"):
        ActionGrid.uniform(space=joint_space(7), zero_bin=True)
    with pytest.raises(ValueError, match="r has 1 bins; with zero_bin it needs at least 2"):
        ActionGrid.uniform(bins=(4, 4, 1, 4, 4, 4, 2), zero_bin=True)
    with pytest.raises(ValueError, match="pitch has 2 bins; with zero_bin it needs at least 3"):
        ActionGrid.uniform(bins=(4, 4, 4, 4, 2, 4, 2), zero_bin=True)
    config = json.loads(json.dumps(to_processor_config(ActionGrid.uniform(zero_bin=True))))
    means = config["action_config"]["bin_means"]["yaw"]
    means[means.index(0.0)] = 1e-3
    with pytest.raises(ValueError, match="zero_bin is set, but means of yaw"):
        from_processor_config(config)
