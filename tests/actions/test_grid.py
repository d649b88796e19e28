"""What every grid does, whatever its sizes; the released numbers are in test_grid_golden.py."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialvla_ft.actions import ActionGrid, fit_gaussians
from spatialvla_ft.actions.codec import BinLookup
from spatialvla_ft.actions.quantiles import Weighted, conditional_means, quantile_edges

BINS = (5, 7, 3, 4, 6, 2, 2)
AXES = ("theta", "phi", "r", "roll", "pitch", "yaw")


@pytest.fixture(scope="module")
def robot():
    """Normalised actions of a robot that mostly moves down and a little, and often stands still."""
    rng = np.random.default_rng(7)
    actions = rng.normal([0.1, 0.0, -0.2, 0.0, 0.1, 0.0], 0.3, (4000, 6)).clip(-1, 1)
    actions[:900, :3] = 0.0
    return np.column_stack([actions, rng.integers(0, 2, 4000)])


@pytest.fixture(params=["gaussian", "quantile", "uniform"], scope="module")
def grid(request, robot):
    if request.param == "gaussian":
        return ActionGrid.from_gaussians(fit_gaussians(robot), bins=BINS)
    if request.param == "quantile":
        return ActionGrid.from_quantiles(robot, bins=BINS)
    return ActionGrid.uniform(bins=BINS)


def loop_encode(grid, action):
    """One action, with comparisons only."""
    x, y, z, roll, pitch, yaw, gripper = (min(1.0, max(-1.0, float(v))) for v in action)
    r = math.sqrt(x * x + y * y + z * z)
    theta = math.acos(max(-1.0, min(1.0, z / r))) if r else 0.0
    values = (theta, math.atan2(y, x), r, roll, pitch, yaw)
    index = []
    for axis, value in zip(AXES, values, strict=True):
        inner = grid.edges[axis][1:-1]
        index.append(sum(1 for edge in inner if edge <= value))
    shape = [len(grid.edges[axis]) - 1 for axis in AXES]
    translation = np.ravel_multi_index(index[:3], shape[:3])
    rotation = np.ravel_multi_index(index[3:], shape[3:])
    counts = math.prod(shape[:3]), math.prod(shape[3:])
    return [translation, counts[0] + rotation, sum(counts) + (gripper >= 0.5)]


def test_ids_follow_the_bin_counts(grid):
    assert grid.bins == BINS
    assert grid.total == 5 * 7 * 3 + 4 * 6 * 2 + 2
    assert grid.offsets == (0, 105, 153)
    default = ActionGrid.uniform()
    assert (default.total, default.offsets) == (8194, (0, 4096, 8192))


@pytest.mark.parametrize("rows", [1, 8, 9, 500])
def test_encode_against_a_loop(grid, robot, rows):
    actions = np.random.default_rng(rows).permutation(robot)[:rows]
    np.testing.assert_array_equal(
        grid.encode(actions), [loop_encode(grid, action) for action in actions]
    )


def test_blocks_join(grid):
    actions = np.random.default_rng(0).uniform(-1, 1, (20_000, 7))
    ids = grid.encode(actions)
    for start in range(0, 20_000, 5_000):
        np.testing.assert_array_equal(
            grid.encode(actions[start : start + 5_000]), ids[start : start + 5_000]
        )
    decoded = grid.decode(ids)
    np.testing.assert_array_equal(decoded[9_000:9_100], grid.decode(ids[9_000:9_100]))


def test_decode_against_a_loop(grid):
    for mode, centres in (("mean", grid.means), ("midpoint", grid.midpoints)):
        for index in itertools.product(range(5), range(7), range(3)):
            theta, phi, r = (
                centres[axis][i] for axis, i in zip(("theta", "phi", "r"), index, strict=True)
            )
            row = np.ravel_multi_index(index, (5, 7, 3))
            z = complex(math.cos(theta), math.sin(theta)) * r
            xy = complex(math.cos(phi), math.sin(phi)) * z.imag
            expected = np.clip([xy.real, xy.imag, z.real], -1, 1)
            decoded = grid.decode([[row, 105, 153]], mode=mode)[0]
            np.testing.assert_allclose(decoded[:3], expected, atol=1e-12)
            assert decoded[6] == 0


def test_decode_stays_in_the_bins(grid):
    """Rotation ids all come back; so do translation ids whose point lies in the cube."""
    rotations = np.arange(105, 153)
    ids = np.stack([np.zeros_like(rotations), rotations, np.full_like(rotations, 154)], axis=1)
    for mode in ("mean", "midpoint"):
        np.testing.assert_array_equal(grid.encode(grid.decode(ids, mode=mode))[:, 1:], ids[:, 1:])
    translations = np.arange(105)
    ids = np.stack([translations, np.full(105, 105), np.full(105, 153)], axis=1)
    decoded = grid.decode(ids, mode="midpoint")
    inside = (np.abs(decoded[:, :3]) < 1).all(axis=1)
    assert inside.sum() > 50
    np.testing.assert_array_equal(grid.encode(decoded)[inside, 0], translations[inside])


def test_gripper(grid):
    actions = np.zeros((4, 7))
    actions[:, 6] = [0.0, 0.499, 0.5, 1.0]
    ids = grid.encode(actions)
    np.testing.assert_array_equal(ids[:, 2] - grid.offsets[2], [0, 0, 1, 1])
    np.testing.assert_array_equal(grid.decode(ids)[:, 6], [0, 0, 1, 1])


@pytest.mark.parametrize("rows", [3, 40])
def test_torch_in_torch_out(grid, robot, rows):
    actions = torch.from_numpy(robot[:rows])
    ids = grid.encode(actions)
    assert isinstance(ids, torch.Tensor)
    assert ids.dtype == torch.int64
    np.testing.assert_array_equal(ids.numpy(), grid.encode(robot[:rows]))
    decoded = grid.decode(ids)
    assert isinstance(decoded, torch.Tensor)
    np.testing.assert_array_equal(decoded.numpy(), grid.decode(ids.numpy()))
    half = grid.encode(actions.bfloat16())
    np.testing.assert_array_equal(half.numpy(), grid.encode(actions.bfloat16().double()))


def test_empty(grid):
    assert grid.encode(np.zeros((0, 7))).shape == (0, 3)
    assert grid.decode(np.zeros((0, 3), dtype=np.int64)).shape == (0, 7)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=7, max_size=7))
def test_one_row_and_many_rows_agree(action):
    grid = ActionGrid.uniform(bins=(6, 12, 5, 3, 4, 5, 2))
    many = grid.encode(np.tile(action, (20, 1)))
    np.testing.assert_array_equal(many, np.repeat(grid.encode([action]), 20, axis=0))
    decoded = grid.decode(many)
    assert np.isfinite(decoded).all()
    assert (np.abs(decoded) <= 1).all()


def test_mean_decoding_is_closer(robot):
    moving = robot[900:]
    grid = ActionGrid.from_gaussians(fit_gaussians(moving))
    ids = grid.encode(moving)

    def rmse(mode):
        return np.sqrt(np.mean((grid.decode(ids, mode=mode) - moving)[:, :6] ** 2))

    assert rmse("mean") < 0.95 * rmse("midpoint")
    assert grid.decoding == "mean"


def test_error_shrinks_with_more_bins(robot):
    errors = []
    for factor in (1, 2, 4):
        grid = ActionGrid.uniform(bins=(8 * factor, 16 * factor, 4 * factor, 8, 8, 8, 2))
        decoded = grid.decode(grid.encode(robot))
        errors.append(np.abs(decoded - robot)[:, :3].mean())
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 105, 105]], r"ids\[0, 2\] is 105, no gripper id; those are 153..154"),
        ([[0, 104, 153]], r"ids\[0, 1\] is 104, no rotation id; those are 105..152"),
        ([[0, 105, 153], [105, 105, 153]], r"ids\[1, 0\] is 105, no translation id"),
        ([[-1, 105, 153]], r"ids\[0, 0\] is -1"),
        ([[0, 105, 155]], r"ids\[0, 2\] is 155"),
        ([[0, 105]], "shape"),
        ([[0.0, 105.0, 153.0]], "integers"),
        ([[0, 105, 153]] * 20 + [[0, 0, 153]], r"ids\[20, 1\] is 0"),
    ],
)
def test_decode_refuses(ids, message):
    with pytest.raises(ValueError, match=message):
        ActionGrid.uniform(bins=BINS).decode(np.array(ids))


def test_encode_refuses():
    grid = ActionGrid.uniform()
    with pytest.raises(ValueError, match=r"shape \(n, 7\)"):
        grid.encode(np.zeros((2, 8)))
    with pytest.raises(ValueError, match="Reshape"):
        grid.encode(np.zeros((2, 4, 7)))
    for rows in (1, 30):
        actions = np.zeros((rows, 7))
        actions[-1, 4] = np.inf
        with pytest.raises(ValueError, match=rf"actions\[{rows - 1}, 4\] \(pitch\) is inf"):
            grid.encode(actions)


def _edges(**changes):
    return {**ActionGrid.uniform(bins=BINS).edges, **changes}


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (_edges(roll=[-1, 0.5, 0.5, 1]), r"edges of roll\[2\] is 0.5, not above 0.5"),
        (_edges(roll=[-1, 0.5, 0.2, 1]), r"edges of roll\[2\] is 0.2, not above 0.5"),
        (_edges(r=[0, np.nan, 1]), r"edges of r\[1\] is nan"),
        (_edges(r=[0]), "edges of r must be a list of at least 2"),
        (_edges(theta=[0, 90, 180]), "outside its range.*radians"),
        ({"theta": [0, 1]}, "missing"),
        (_edges(wrist=[0, 1]), "unknown"),
    ],
)
def test_from_boundaries_refuses(edges, message):
    with pytest.raises(ValueError, match=message):
        ActionGrid.from_boundaries(edges)


def test_from_boundaries_means():
    grid = ActionGrid.from_boundaries(_edges())
    for axis in AXES:
        np.testing.assert_array_equal(grid.means[axis], grid.midpoints[axis])
    means = {axis: 0.75 * e[:-1] + 0.25 * e[1:] for axis, e in grid.edges.items()}
    given_means = ActionGrid.from_boundaries(_edges(), means=means)
    assert not np.array_equal(given_means.decode([[9, 110, 153]]), grid.decode([[9, 110, 153]]))
    with pytest.raises(ValueError, match=r"means of yaw\[0\] is 2.0, outside its bin"):
        ActionGrid.from_boundaries(_edges(), means=means | {"yaw": [2.0, 0.5]})
    with pytest.raises(ValueError, match="means of yaw need one number per bin"):
        ActionGrid.from_boundaries(_edges(), means=means | {"yaw": [0.5]})


class TestQuantiles:
    def test_equal_counts(self):
        values = np.random.default_rng(3).gamma(2.0, 0.2, 10_000).clip(0, 1.7)
        edges = quantile_edges(Weighted.of(values), 0.0, math.sqrt(3), 8)
        counts = np.histogram(values, edges)[0]
        assert np.abs(counts - 1250).max() <= 2

    def test_a_robot_that_stands_still_decodes_to_zero(self, robot):
        grid = ActionGrid.from_quantiles(robot)
        decoded = grid.decode(grid.encode(robot[:900]))
        assert np.abs(decoded[:, :3]).max() < 1e-9
        gaussian = ActionGrid.from_gaussians(fit_gaussians(robot))  # the control: it drifts
        assert np.abs(gaussian.decode(gaussian.encode(robot[:900]))[:, :3]).max() > 0.02

    @settings(max_examples=100, deadline=None)
    @given(
        values=st.lists(st.sampled_from([-1.0, -0.3, 0.0, 1e-9, 0.5, 1.0]) | st.floats(-1, 1)),
        n=st.integers(1, 20),
    )
    def test_always_n_bins_from_end_to_end(self, values, n):
        edges = quantile_edges(Weighted.of(np.array(values, dtype=float)), -1.0, 1.0, n)
        assert len(edges) == n + 1
        assert (edges[0], edges[-1]) == (-1.0, 1.0)
        assert (np.diff(edges) > 0).all()

    def test_clipped_extremes_get_their_own_bins(self):
        rng = np.random.default_rng(4)
        values = np.concatenate([rng.uniform(-1, 1, 600), np.full(300, -1.0), np.full(300, 1.0)])
        edges = quantile_edges(Weighted.of(values), -1.0, 1.0, 16)
        means = conditional_means(values, edges)
        assert means[[0, -1]] == pytest.approx([-1, 1], abs=1e-6)

    def test_means_against_a_loop(self):
        values = np.random.default_rng(5).normal(0, 0.3, 300).clip(-1, 1)
        edges = np.array([-1.0, -0.2, 0.1, 0.99, 0.995, 1.0])
        expected = [
            np.mean([v for v in values if a <= v < b] or [(a + b) / 2])
            for a, b in itertools.pairwise(edges)
        ]
        np.testing.assert_allclose(conditional_means(values, edges), expected, atol=1e-12)


class TestLookup:
    @settings(max_examples=150, deadline=None)
    @given(
        inner=st.lists(st.floats(-0.999, 0.999), min_size=0, max_size=30, unique=True),
        values=st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    )
    def test_is_digitize(self, inner, values):
        edges = np.array([-1.0, *sorted(inner), 1.0])
        probes = np.concatenate([values, edges, np.nextafter(edges, -2), np.nextafter(edges, 2)])
        np.testing.assert_array_equal(BinLookup.of(edges)(probes), np.digitize(probes, edges[1:-1]))

    def test_edges_too_close_for_a_table(self):
        edges = np.array([-1.0, 0.3, np.nextafter(0.3, 1), 1.0])
        lookup = BinLookup.of(edges)
        assert lookup.cells == 0
        np.testing.assert_array_equal(lookup(np.array([0.2, 0.3, edges[2], 0.9])), [0, 1, 2, 2])
        assert BinLookup.of(np.linspace(-1, 1, 17)).cells == 16
