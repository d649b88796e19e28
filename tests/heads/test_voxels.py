"""Cells of an action space against oracles in float64 that write every volume out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.spaces import joint_space, two_arms_delta
from spatialvla_ft.heads.voxels import Scattered, VoxelGrid, cells_of_grid

PI = math.pi
GRIDS = {
    "plain": VoxelGrid((8, 7, 4)),
    "padded": VoxelGrid((8, 8, 4), pad=0.25),
    "box": VoxelGrid((5, 6, 7), low=-2, high=3),
    "line": VoxelGrid((16,), pad=0.1),
    "plane": VoxelGrid((6, 5), periodic=(True, False)),
    "turning": VoxelGrid((8, 6, 5), low=-PI, high=PI, pad=0.3, periodic=(True, False, True)),
}
SIGMAS = (0.1, 0.4, 0.0)
ROUNDING = 1e-4
"""Of probabilities: exponents of up to a few hundred nats are kept to 24 bits."""

each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
each_sigma = pytest.mark.parametrize("sigma", SIGMAS)


def rng(seed=0):
    return np.random.default_rng(seed)


def some_points(grid, count=12, beyond=0.5):
    """Inside the box, on its corners, and outside."""
    spread = grid.high - grid.low
    inside = rng().uniform(grid.low - beyond * spread, grid.high + beyond * spread, (count, 3))
    return np.concatenate([inside, [[grid.low] * 3, [grid.high] * 3]])[:, : grid.dim]


def lattice(grid):
    """Every cell's centre, (C, d), by what a grid promises."""
    period = grid.high - grid.low
    axes = [
        [grid.low + period * i / n for i in range(n)]
        if turns
        else np.linspace(grid.low - grid.pad, grid.high + grid.pad, n)
        for n, turns in zip(grid.bins, grid.periodic, strict=True)
    ]
    return np.array(list(itertools.product(*axes)))


def apart(grid, points, cells):
    """Signed distance of every cell from every point (n, C, d), the shortest of many turns."""
    away = cells[None] - np.asarray(points, np.float64)[:, None]
    for axis in np.flatnonzero(grid.periodic):
        turned = away[..., axis] + (grid.high - grid.low) * np.arange(-4, 5)[:, None, None]
        nearest = np.abs(turned).argmin(0)[None]
        away[..., axis] = np.take_along_axis(turned, nearest, 0)[0]
    return away


def soft_targets(away, sigma):
    squared = np.square(away).sum(-1)
    if sigma:
        return softmax(-squared / (2 * sigma**2), axis=-1)
    return np.eye(squared.shape[-1])[squared.argmin(-1)]


def entropy_of(chance):
    return -np.sum(chance * np.log(np.where(chance > 0, chance, 1)), -1)


def some_logits(count, cells, seed=1, scale=3.0):
    return (rng(seed).normal(size=(count, cells)) * scale).astype(np.float32)


# ---------------------------------------------------------------- encode


@each_grid
@each_sigma
def test_a_target_is_a_softmax_over_all_cells(grid, sigma):
    points = some_points(grid)
    wanted = soft_targets(apart(grid, points, lattice(grid)), sigma)
    found = grid.encode(points, sigma)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    assert found.shape == (len(points), *grid.bins)
    np.testing.assert_allclose(found.reshape(len(points), -1), wanted, atol=ROUNDING)
    np.testing.assert_allclose(found.reshape(len(points), -1).sum(-1), 1, atol=1e-5)
    same = grid.encode(torch.as_tensor(points), sigma)
    assert isinstance(same, torch.Tensor)
    assert same.dtype == torch.float32
    np.testing.assert_array_equal(same.numpy(), found)


def test_centres_are_a_lattice_over_the_padded_box():
    x, y, z = VoxelGrid((3, 5, 4), pad=0.5, periodic=(False, False, True)).centres
    np.testing.assert_allclose(x, [-1.5, 0, 1.5])
    np.testing.assert_allclose(y, [-1.5, -0.75, 0, 0.75, 1.5])
    np.testing.assert_allclose(z, [-1, -0.5, 0, 0.5])  # no pad, and not both of its ends
    assert x.dtype == np.float64
    assert VoxelGrid() == VoxelGrid((48, 48, 24), low=-1.0, high=1.0, pad=0.0)
    assert VoxelGrid().size == 48 * 48 * 24


@each_sigma
def test_far_outside_the_box_the_nearest_cell_has_it_all(sigma):
    grid = VoxelGrid((8, 8, 4), pad=0.25)
    far = grid.encode([[1e4, -1e4, 1e4], [1e6, 0.18, -1e6]], sigma)
    assert np.isfinite(far).all()
    assert far[0, -1, 0, -1] == pytest.approx(1)
    assert far[1, -1, :, 0].sum() == pytest.approx(1)


# ---------------------------------------------------------------- the loss


@each_grid
@each_sigma
def test_cross_entropy_entropy_and_gradient_are_those_of_the_whole_volume(grid, sigma):
    points = some_points(grid, 6)
    logits = torch.tensor(some_logits(len(points), grid.size), requires_grad=True)
    target = soft_targets(apart(grid, points, lattice(grid)), sigma)
    exact = logits.detach().double().numpy()
    cross, entropy = grid.soft_target(logits, torch.as_tensor(points), sigma)
    assert cross.dtype == entropy.dtype == torch.float32
    wanted = -(target * log_softmax(exact, -1)).sum(-1)
    np.testing.assert_allclose(cross.detach(), wanted, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(entropy, entropy_of(target), rtol=1e-3, atol=1e-3)
    cross.sum().backward()
    np.testing.assert_allclose(logits.grad, softmax(exact, -1) - target, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["lattice", "scattered"])
def test_logits_of_few_bits_are_computed_in_float32(kind):
    """Also where autocast would have matrix products in bfloat16, as it does in training."""
    grid = VoxelGrid((8, 8, 4), pad=0.25)
    cells = grid if kind == "lattice" else Scattered(lattice(grid))
    points = torch.as_tensor(some_points(grid, 8, beyond=0.0))
    short = torch.tensor(some_logits(len(points), grid.size)).bfloat16()
    exact = short.double().numpy()
    away = apart(grid, points.numpy(), lattice(grid))
    wanted = -(soft_targets(away, 0.2) * log_softmax(exact, -1)).sum(-1)
    mean = softmax(exact, -1) @ lattice(grid)
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            cross, entropy = cells.soft_target(short, points, 0.2)
            read, spread = cells.read(short, "expectation", None)
            local, _ = cells.read(short, "local", 0.5)
        assert {t.dtype for t in (cross, entropy, read, spread, local)} == {torch.float32}
        np.testing.assert_allclose(cross, wanted, rtol=1e-5)
        np.testing.assert_allclose(read, mean, atol=1e-5)
        np.testing.assert_allclose(local, cells.read(short.float(), "local", 0.5)[0], atol=1e-6)


def test_uniform_logits_and_the_floor_of_a_published_head():
    """48 x 48 x 24 cells of a translation, 24^3 of a rotation, a gripper; sigma 0.1."""
    maps = [VoxelGrid((48, 48, 24)), VoxelGrid((24, 24, 24))]
    inside = torch.tensor([[0.03, -0.21, 0.12]])
    told = [grid.soft_target(torch.zeros(1, grid.size), inside, 0.1) for grid in maps]
    assert float(sum(cross for cross, _ in told)) + math.log(2) == pytest.approx(21.15, abs=0.005)
    assert float(sum(entropy for _, entropy in told)) == pytest.approx(10.78, abs=0.01)
    perfect = [grid.encode(inside, 0.1).flatten(1).clamp_min(1e-30).log() for grid in maps]
    for grid, logits in zip(maps, perfect, strict=True):
        cross, entropy = grid.soft_target(logits, inside, 0.1)
        torch.testing.assert_close(cross, entropy, rtol=0, atol=1e-3)


# ---------------------------------------------------------------- decode


def decoded(grid, logits, mode, reach=None):
    """By the definition of every mode, from whole volumes."""
    cells, chance = lattice(grid), softmax(np.asarray(logits, np.float64), -1)
    best = cells[chance.argmax(-1)]
    steps = [np.diff(np.unique(cells[:, axis]))[0] for axis in range(grid.dim)]
    if mode == "argmax":
        return best
    if mode == "local":
        half = [2 * s if reach is None else max(reach, s) for s in steps]
        away = apart(grid, best, cells)
        inside = (np.abs(away) <= np.array(half) * (1 + 1e-4)).all(-1) * chance
        return best + (inside[..., None] * away).sum(1) / inside.sum(1)[:, None]
    found = chance @ cells
    for axis in np.flatnonzero(grid.periodic):
        turn = 2 * PI / (grid.high - grid.low)
        found[:, axis] = np.angle(chance @ np.exp(1j * turn * cells[:, axis])) / turn
    return found


def assert_same_place(grid, found, wanted, atol):
    away = np.asarray(found, np.float64) - wanted
    period = grid.high - grid.low
    for axis in np.flatnonzero(grid.periodic):
        away[:, axis] = (away[:, axis] + period / 2) % period - period / 2
        assert (grid.low <= np.asarray(found)[:, axis]).all()
        assert (np.asarray(found)[:, axis] < grid.high).all()
    np.testing.assert_allclose(away, 0, atol=atol)


@each_grid
@pytest.mark.parametrize("mode", ["argmax", "expectation", "local"])
@pytest.mark.parametrize("reach", [None, 0.01, 0.9])
def test_every_mode_is_what_it_says(grid, mode, reach):
    logits = some_logits(20, grid.size)
    found = grid.decode(logits.reshape(-1, *grid.bins), mode, reach=reach)
    assert found.shape == (20, grid.dim)
    assert found.dtype == np.float32
    assert_same_place(grid, found, decoded(grid, logits, mode, reach), 1e-5 * PI)
    same = grid.decode(torch.tensor(logits).view(-1, *grid.bins), mode, reach=reach)
    assert isinstance(same, torch.Tensor)
    np.testing.assert_array_equal(same, found)


@each_grid
@each_sigma
def test_encode_then_argmax_is_within_half_a_cell(grid, sigma):
    points = rng(2).uniform(grid.low, grid.high, (40, grid.dim))
    found = grid.decode(grid.encode(points, sigma), "argmax")
    away = np.abs(np.diagonal(apart(grid, points, np.asarray(found, np.float64)), 0, 0, 1).T)
    assert (away <= np.array(grid.steps) / 2 + 1e-5).all()


def test_spread_is_one_standard_deviation():
    grid, sigma = VoxelGrid((40, 30, 36), pad=0.8, periodic=(False, False, True)), 0.2
    points = torch.tensor([[0.1, -0.2, 0.95], [0.0, 0.3, -1.0]])
    logits = grid.encode(points, sigma).flatten(1).clamp_min(1e-30).log()
    for mode in ("argmax", "expectation", "local"):
        spread = grid.read(logits, mode, None)[1]
        torch.testing.assert_close(spread, torch.full((2, 3), sigma), rtol=0.01, atol=0)


def test_errors_of_perfect_logits_are_those_published():
    """Mean distances inside the box, 48 x 48 x 24 and sigma 0.1; `local` here is 5 cells a side."""
    grid = VoxelGrid((48, 48, 24))
    points = rng(3).uniform(-0.7, 0.7, (100, 3))
    logits = np.log(np.maximum(grid.encode(points, 0.1), 1e-30))
    errors = {
        mode: np.linalg.norm(grid.decode(logits, mode) - points, axis=-1).mean()
        for mode in ("argmax", "expectation", "local")
    }
    assert errors["argmax"] == pytest.approx(0.029, abs=0.004)
    assert errors["local"] == pytest.approx(0.012, abs=0.003)
    assert errors["expectation"] < 0.004
    wide = np.linalg.norm(grid.decode(logits, "local", reach=0.25) - points, axis=-1).mean()
    assert wide < 0.004 + 0.005  # 2.5 sigma hold 99 % of it, cut to whole cells


def test_of_two_equal_modes_local_takes_one_and_expectation_neither():
    grid = VoxelGrid((48, 48, 24), pad=0.25)
    two = grid.encode([[-0.5, 0.1, 0], [0.5, 0.1, 0]], 0.1).mean(0, keepdims=True)
    logits = np.log(np.maximum(two, 1e-30))
    for reach in (None, 0.25):
        (x, y, _), *_ = grid.decode(logits, "local", reach=reach)
        assert abs(abs(x) - 0.5) < grid.steps[0] / 2
        assert abs(y - 0.1) < grid.steps[1] / 2
    ((x, _, _),) = grid.decode(logits, "expectation")
    assert abs(x) < 0.01


def test_a_target_at_the_edge_needs_a_pad():
    edge = [[1.0, -1.0, 1.0]]
    bare, padded = VoxelGrid((48, 48, 24)), VoxelGrid((48, 48, 24), pad=0.2)
    pulled = bare.decode(np.log(np.maximum(bare.encode(edge, 0.1), 1e-30)), "expectation")[0]
    assert pulled[0] == pytest.approx(0.933, abs=0.003)
    assert pulled[1] == pytest.approx(-0.933, abs=0.003)
    for mode in ("expectation", "local"):
        logits = np.log(np.maximum(padded.encode(edge, 0.1), 1e-30))
        kept = padded.decode(logits, mode, reach=0.25)
        np.testing.assert_allclose(kept, edge, atol=0.01)  # phi(2) sigma = 0.005 is beyond the pad


def test_a_periodic_axis_goes_round():
    grid = VoxelGrid((24,), low=-PI, high=PI, periodic=(True,))
    (centres,) = grid.centres
    assert centres[0] == -PI
    assert centres[-1] < PI - 0.2
    at_both = grid.encode([[-PI], [PI]], 0.3)
    np.testing.assert_allclose(at_both[0], at_both[1], atol=1e-5)
    assert at_both[0, 1] == pytest.approx(at_both[0, -1], rel=1e-3)  # either side of the seam
    seam = grid.encode([[PI - 0.1], [-PI + 0.1]], 0.3).mean(0, keepdims=True)
    logits = np.log(np.maximum(seam, 1e-30))
    for mode in ("expectation", "local", "argmax"):
        (angle,) = grid.decode(logits, mode, reach=0.75)[0]
        assert -PI <= angle < PI
        assert PI - abs(angle) < 0.1, mode  # not 0, the mean of the numbers
    straight = VoxelGrid((24,), low=-PI, high=PI)
    assert abs(straight.decode(logits, "expectation")[0, 0]) < 1.5


@pytest.mark.parametrize(("low", "high", "bins"), [(-1, 1, 16), (0, 1, 8), (-PI, PI, 24)])
def test_means_at_the_seam_stay_below_its_upper_side(low, high, bins):
    """Rounding puts them on either side of it."""
    grid = VoxelGrid((bins,), low=low, high=high, periodic=(True,))
    logits = torch.full((500, bins), -30.0)
    logits[:, [0, 1, -1]] = torch.tensor(rng().normal(size=(500, 1)) * 3).float()
    for mode in ("expectation", "local"):
        found = grid.decode(logits, mode)
        assert float(found.min()) >= low - 1e-6
        assert bool((found < high).all())


# ---------------------------------------------------------------- what is refused, what is taken


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda g: g.encode([[0.0, math.nan, 0.0]], 0.1), "points are not finite in row 0"),
        (lambda g: g.encode([[0.0] * 3, [math.inf, 0, 0]], 0.1), "not finite in row 1"),
        (lambda g: g.encode(np.zeros((2, 2)), 0.1), r"points must be \(n, 3\), got \(2, 2\)"),
        (lambda g: g.encode(np.zeros(3), 0.1), r"points must be \(n, 3\), got \(3,\)"),
        (lambda g: g.encode(np.zeros((1, 3)), -0.5), "sigma must be 0 or more, got -0.5"),
        (lambda g: g.encode(np.zeros((1, 3)), math.nan), "sigma must be 0 or more, got nan"),
        (lambda g: g.decode(np.full((2, 4, 4, 4), math.nan)), "logits hold NaN in row 0"),
        (lambda g: g.decode(torch.zeros(2, 4, 4, 5)), r"logits must be .*got \(2, 4, 4, 5\)"),
        (lambda g: g.decode(torch.zeros(4, 4, 4)), r"logits must be .*got \(4, 4, 4\)"),
        (lambda g: g.decode(np.zeros((1, 4, 4, 4)), "best"), "mode is 'best'; it must be one of"),
        (lambda g: VoxelGrid((4, 1)), r"bins must be .* at least 2, got \(4, 1\)"),
        (lambda g: VoxelGrid((4, 4.5)), r"bins must be .*got \(4, 4.5\)"),
        (lambda g: VoxelGrid((4,) * 4), r"bins must be 1 to 3 .*got \(4, 4, 4, 4\)"),
        (lambda g: VoxelGrid((4, 4), periodic=(True,)), r"periodic must say .*2, got \(True,\)"),
        (lambda g: VoxelGrid(low=1, high=1), "low must be below high, got 1 and 1"),
        (lambda g: VoxelGrid(pad=-0.1), "pad must be 0 or more, got -0.1"),
        (lambda g: Scattered(np.zeros(3)), r"centres must be \(C, d\) .*got \(3,\)"),
        (lambda g: g.read(torch.zeros(1, 64), "best", None), "mode is 'best'"),
        (lambda g: Scattered(np.eye(3)).read(torch.zeros(1, 3), "best", None), "mode is 'best'"),
    ],
)
def test_what_is_refused_says_why(call, said):
    with pytest.raises(ValueError, match=said):
        call(VoxelGrid((4, 4, 4)))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_logits_that_have_no_best_cell_are_refused(value):
    grid = VoxelGrid((4, 4, 4))
    logits = np.zeros((3, 4, 4, 4))
    logits[1] = value
    with pytest.raises(ValueError, match=f"row 1.*{value}|{value}.*row 1"):
        grid.decode(logits, "expectation")
    logits[1] = 0.0
    logits[1, :2] = -math.inf  # cells that are ruled out
    assert np.isfinite(grid.decode(logits, "local")).all()


def test_arrays_of_any_kind_are_taken_and_none_is_changed():
    grid = VoxelGrid((4, 4, 4))
    points = rng().uniform(-1, 1, (5, 3))
    wanted = grid.encode(points, 0.2)
    points.flags.writeable = False
    np.testing.assert_array_equal(grid.encode(points, 0.2), wanted)
    np.testing.assert_array_equal(grid.encode(points[::-1], 0.2), wanted[::-1])
    np.testing.assert_array_equal(grid.encode(points.tolist(), 0.2), wanted)
    assert grid.encode(np.zeros((0, 3)), 0.2).shape == (0, 4, 4, 4)
    wanted.flags.writeable = False
    read = grid.decode(wanted, "local")
    np.testing.assert_array_equal(grid.decode(wanted[::-1], "local"), read[::-1])
    np.testing.assert_array_equal(grid.decode(wanted.astype(np.float64), "local"), read)


# ---------------------------------------------------------------- scattered cells


@each_sigma
def test_scattered_cells_against_brute_force(sigma):
    centres = rng(4).uniform(-1, 1, (60, 3))
    cells, points = Scattered(centres), rng(5).uniform(-1.2, 1.2, (40, 3))
    logits = torch.tensor(some_logits(40, 60), requires_grad=True)
    exact = logits.detach().double().numpy()
    target = soft_targets(centres[None] - points[:, None], sigma)
    cross, entropy = cells.soft_target(logits, torch.as_tensor(points), sigma)
    wanted = -(target * log_softmax(exact, -1)).sum(-1)
    np.testing.assert_allclose(cross.detach(), wanted, rtol=1e-5)
    np.testing.assert_allclose(entropy, entropy_of(target), atol=1e-4)
    cross.sum().backward()
    np.testing.assert_allclose(logits.grad, softmax(exact, -1) - target, atol=1e-5)

    chance = softmax(exact, -1)
    best = centres[chance.argmax(-1)]
    mean = chance @ centres
    near = chance * (np.abs(centres[None] - best[:, None]).max(-1) <= 0.5)
    local = near @ centres / near.sum(-1, keepdims=True)
    deviation = np.sqrt((chance[..., None] * (centres[None] - mean[:, None]) ** 2).sum(1))
    for mode, place in (("argmax", best), ("expectation", mean), ("local", local)):
        found, spread = cells.read(logits.detach(), mode, 0.5)
        np.testing.assert_allclose(found, place, atol=1e-5)
        np.testing.assert_allclose(spread, deviation, atol=1e-4)
    alone, _ = cells.read(logits.detach(), "local", None)  # without a reach only the best itself
    np.testing.assert_allclose(alone, best, atol=1e-6)


def test_cells_of_a_hair_apart_are_told_apart():
    """Far from 0 too, where squares that are subtracted lose the difference."""
    centres = np.concatenate(
        [rng(6).uniform(-1, 1, (40, 3)), [[0.9, 0.9, 0.9], [0.9, 0.9, 0.9002]]]
    )
    cells = Scattered(centres)
    off = np.array([0, 0, 2e-5])
    points = torch.as_tensor(np.repeat(centres[-2:], 20, 0) + off)
    logits = torch.eye(42)[[40] * 20 + [41] * 20] * 50
    cross, _ = cells.soft_target(logits, points, 0.0)
    torch.testing.assert_close(cross, torch.zeros(40), rtol=0, atol=1e-5)


@pytest.mark.parametrize("space", [None, two_arms_delta(), joint_space(2)])
@pytest.mark.parametrize("means", [False, True])
def test_cells_of_a_grid_are_what_its_ids_decode_to(space, means):
    arm = (3, 4, 2, 3, 2, 4, 2)
    bins = arm if space is None else (arm * 2 if space.dim == 14 else (5, 6, 2))
    grid = ActionGrid.uniform(bins=bins, **({} if space is None else {"space": space}))
    if means:
        grid = grid.with_means(rng(7).uniform(-1, 1, (300, grid.dim)))
    for column, slot in enumerate(grid.slots):
        cells = cells_of_grid(grid, slot.start, slot.stop)
        assert (cells.size, cells.dim) == (grid.counts[column], slot.dim)
        for cell in range(cells.size):
            ids = np.array(grid.offsets)
            ids[column] += cell
            wanted = grid.decode(ids[None])[0, slot.start : slot.stop]
            np.testing.assert_array_equal(cells.centres[cell], wanted)
    with pytest.raises(ValueError, match="no slot for numbers 1 to 1 of an action"):
        cells_of_grid(ActionGrid.uniform(bins=arm), 1, 2)
