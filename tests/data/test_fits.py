"""Fits from streams and of mixtures, against all actions at once and against repeated actions."""

from collections import Counter

import numpy as np
import pytest

from spatialvla_ft.actions.fit import KINDS, axis_tables, fit_grid, fit_grid_blocks
from spatialvla_ft.actions.gaussians import fit_gaussians
from spatialvla_ft.actions.normalise import normalise
from spatialvla_ft.actions.quantiles import Tally
from spatialvla_ft.actions.spaces import end_effector_delta, two_arms_delta
from spatialvla_ft.data import DatasetError, open_dataset
from spatialvla_ft.data.rlds.episodes import RldsStore
from spatialvla_ft.data.stats.fits import MixtureActions
from spatialvla_ft.data.stats.statistics import compute_statistics, dataset_statistics

MASK = np.array([True] * 6 + [False])


def some_actions(n, dim=7, seed=0):
    """Normalised actions with still steps and clipped extremes."""
    rng = np.random.default_rng(seed)
    actions = np.clip(rng.normal(size=(n, dim)) * 0.6, -1, 1)
    actions[rng.random(n) < 0.2, :3] = 0
    actions[:, -1] = rng.random(n) < 0.5
    return actions.astype(np.float32)


def in_blocks(actions, size=333):
    return lambda: ((actions[i : i + size], 1.0) for i in range(0, len(actions), size))


def assert_equal_grids(got, wanted):
    for axis in wanted.edges:
        np.testing.assert_allclose(got.edges[axis], wanted.edges[axis], atol=1e-9, err_msg=axis)
        np.testing.assert_allclose(got.means[axis], wanted.means[axis], atol=1e-9, err_msg=axis)
    assert (got.kind, got.decoding, got.zero_bin) == (wanted.kind, wanted.decoding, wanted.zero_bin)
    assert got.bins == wanted.bins


@pytest.mark.parametrize("zero_bin", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [end_effector_delta(), two_arms_delta()], ids=["one", "two"])
def test_a_grid_from_blocks_is_the_grid_from_all(kind, space, zero_bin):
    actions = some_actions(2500, space.dim)
    given = {"space": space, "zero_bin": zero_bin}
    wanted = fit_grid(kind, actions, **given)
    assert_equal_grids(fit_grid_blocks(kind, in_blocks(actions), **given), wanted)


def test_merged_values_stay_within_the_stated_error():
    """With a table for few numbers only, quantiles lie at most one cell below the true ones."""
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(size=20_000) * 0.3, np.full(3000, 0.25)]).clip(-1, 1)
    tally = Tally(-1.0, 1.0, distinct=100, cells=512)
    for part in np.array_split(rng.permutation(values), 7):
        tally.add(part)
    table = tally.table()
    assert len(table.values) <= 512
    assert table.total == len(values)
    shares = np.linspace(0, 1, 41)
    true = np.quantile(values, shares)
    got = table.quantiles(shares)
    assert (got <= true + 1e-12).all()
    assert (true - got <= 2 / 512 + 1e-12).all()
    assert np.isclose((table.weights * table.means).sum(), values.sum())
    atom = table.values[table.weights.argmax()]
    assert atom <= 0.25 < atom + 2 / 512


def test_a_table_that_overflows_still_bins_well():
    actions = some_actions(4000)
    exact = axis_tables(in_blocks(actions), end_effector_delta())
    merged = axis_tables(in_blocks(actions), end_effector_delta(), distinct=50, cells=1 << 16)
    for axis, table in merged.items():
        assert len(table.values) < len(exact[axis].values) or axis == "phi"
        shares = np.linspace(0, 1, 17)
        width = 2 * np.pi / (1 << 16)
        off = exact[axis].quantiles(shares) - table.quantiles(shares)
        assert (off >= -1e-12).all()
        assert (off <= width + 1e-12).all()


@pytest.fixture
def two(demo):
    """Two parts of the demo dataset as if they were two, and all their normalised actions."""
    whole = open_dataset(demo, card=None)
    first, second = whole.subset(whole.episodes[:2]), whole.subset(whole.episodes[2:])
    second.name = "other/1.0.0"
    statistics = {d.name: dataset_statistics(d) for d in (first, second)}
    parts = [normalise(d.actions(), statistics[d.name]) for d in (first, second)]
    return [first, second], statistics, parts


def test_one_dataset_is_fitted_as_before(two):
    (first, _), statistics, (actions, _) = two
    mixture = MixtureActions([first], statistics, [0.3])
    for kind in KINDS:
        assert_equal_grids(mixture.grid(kind), fit_grid(kind, actions))
    for name, fit in fit_gaussians(actions).items():
        assert mixture.gaussians()[name] == pytest.approx(fit, abs=1e-12)
    expected = compute_statistics(actions, MASK)
    np.testing.assert_allclose(mixture.summary().q99, expected.q99, atol=1e-12)
    np.testing.assert_allclose(mixture.summary().std, expected.std, atol=1e-12)


def test_a_mixture_is_fitted_as_it_is_drawn(two):
    """Shares of 3 to 1 must do what repeating actions until they have these shares does."""
    datasets, statistics, (one, other) = two
    mixture = MixtureActions(datasets, statistics, [0.75, 0.25])
    repeated = np.concatenate([np.repeat(one, 3 * len(other), 0), np.repeat(other, len(one), 0)])
    for name, fit in fit_gaussians(repeated).items():
        assert mixture.gaussians()[name] == pytest.approx(fit, abs=1e-9)
    got, wanted = mixture.grid("gaussian"), fit_grid("gaussian", repeated)
    assert_equal_grids(got, wanted)
    np.testing.assert_allclose(mixture.summary().mean, repeated.mean(0, dtype=np.float64))
    plain = fit_gaussians(np.concatenate([one, other]))
    assert abs(plain["x"]["mu"] - mixture.gaussians()["x"]["mu"]) > 1e-4


def test_shares_by_steps_are_plain_concatenation(two):
    datasets, statistics, parts = two
    mixture = MixtureActions(datasets, statistics, [len(part) for part in parts])
    for kind in KINDS:
        assert_equal_grids(mixture.grid(kind), fit_grid(kind, np.concatenate(parts)))


def test_excluded_datasets_count_for_nothing(two):
    datasets, statistics, (_, other) = two
    mixture = MixtureActions(datasets, statistics, [0.75, 0.25])
    for name, fit in fit_gaussians(other).items():
        assert mixture.without(["demo"]).gaussians()[name] == pytest.approx(fit, abs=1e-12)
    with pytest.raises(DatasetError, match="leaves no dataset"):
        mixture.without(["demo/1.0.0", "other"])


def test_fits_are_kept_by_content(two, monkeypatch):
    datasets, statistics, _ = two
    reads = Counter()
    read = RldsStore.trajectory

    def counting(self, episode, keys):
        reads[episode] += 1
        return read(self, episode, keys)

    monkeypatch.setattr(RldsStore, "trajectory", counting)
    fits = [MixtureActions(datasets, statistics, [1, 2]) for _ in range(2)]
    results = []
    for mixture in fits:
        results.append((mixture.grid("gaussian"), mixture.grid("quantile"), mixture.summary()))
        assert bool(reads) == (mixture is fits[0])
        reads.clear()
    assert_equal_grids(results[1][0], results[0][0])
    MixtureActions(datasets, statistics, [1, 3]).gaussians()
    assert not reads  # moments merge
    MixtureActions(datasets, statistics, [1, 3]).grid("gaussian")
    assert reads
    reads.clear()
    deltas = datasets[0].action_space.deltas
    symmetric = {name: s.symmetric(deltas) for name, s in statistics.items()}
    MixtureActions(datasets, symmetric, [1, 2]).grid("gaussian")
    assert reads


@pytest.mark.parametrize("kind", KINDS)
def test_a_dimension_that_never_moves_can_be_fitted(kind):
    """As zeros(1) in a card makes it; a Gaussian of no width would have no bins."""
    actions = some_actions(500)
    actions[:, 4] = 0.0
    for grid in (
        fit_grid(kind, actions),
        fit_grid_blocks(kind, in_blocks(actions), space=end_effector_delta()),
    ):
        back = grid.decode(grid.encode(actions))
        np.testing.assert_allclose(back[:, 4], 0.0, atol=1e-9)
        assert np.abs(back[:, 3] - actions[:, 3]).max() < 0.3


def test_bins_of_equal_counts_do_not_give_rare_motion_away():
    """Over noise a value in a hundred would share its bin with six times as much noise."""
    rng = np.random.default_rng(4)
    actions = some_actions(4000)
    for noise in (1e-5, 1e-3, 1e-2):
        actions[:, 5] = rng.normal(size=4000) * noise
        actions[:40, 5] = rng.choice([-1, 0.7], 40)
        grid = fit_grid("quantile", actions)
        back = grid.decode(grid.encode(actions))
        np.testing.assert_allclose(back[:40, 5], actions[:40, 5], atol=0.05)
        assert np.abs(back[40:, 5]).max() < 5 * noise
    # Where equal counts lose little, they are what there is.
    plain = some_actions(4000)
    edges = fit_grid("quantile", plain).edges["yaw"]
    np.testing.assert_allclose(
        edges[1:-1], np.quantile(plain[:, 5], np.arange(1, 16) / 16), atol=0.02
    )
