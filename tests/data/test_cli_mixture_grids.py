"""`grids fit` and `grids compare` block by block, against all actions at once."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from spatialvla_ft.actions.fit import KINDS, fit_grid
from spatialvla_ft.actions.grid_io import load_grid
from spatialvla_ft.actions.normalise import normalise
from spatialvla_ft.actions.reconstruction import compare_grids, reconstruct
from spatialvla_ft.cli.main import app
from spatialvla_ft.data import Reading, open_dataset
from spatialvla_ft.data.mixtures import find_mixture, open_mixture
from spatialvla_ft.data.stats.fits import MixtureActions, first_half, sample_actions
from spatialvla_ft.data.stats.statistics import compute_statistics

MASK = np.arange(7) < 6


def call(*arguments):
    done = CliRunner().invoke(app, ["grids", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def parts(mine):
    """The mixture's actions, dataset by dataset, read at once and normalised here; the weights."""
    opened = open_mixture(find_mixture("mine", mine[3]), reading=Reading(card=None))
    raw = [dataset.actions() for dataset in opened.datasets]
    statistics = [compute_statistics(actions, MASK) for actions in raw]
    actions = [normalise(a, s) for a, s in zip(raw, statistics, strict=True)]
    known = {d.name: s for d, s in zip(opened.datasets, statistics, strict=True)}
    return opened, actions, MixtureActions(opened.datasets, known, opened.weights)


@pytest.mark.parametrize("zero_bin", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_has_the_edges_of_all_its_actions_at_once(demo, tmp_path, kind, zero_bin):
    out = tmp_path / "grid.json"
    more = ["--zero-bin"] if zero_bin else []
    report = json.loads(call("fit", demo, "--kind", kind, "--out", out, "--json", *more).stdout)
    dataset = open_dataset(demo, card=None)
    known = compute_statistics(dataset.actions(), MASK)
    if zero_bin:
        known = known.symmetric(dataset.action_space.deltas)
    actions = normalise(dataset.actions(), known)
    wanted, got = fit_grid(kind, actions, zero_bin=zero_bin), load_grid(out)
    for axis, edges in wanted.edges.items():
        np.testing.assert_allclose(got.edges[axis], edges, atol=1e-9)
        np.testing.assert_allclose(got.means[axis], wanted.means[axis], atol=1e-9)
    assert (report["num_actions"], report["num_measured"], report["sampled"]) == (27, 27, False)
    error = reconstruct(wanted, actions).rmse
    assert report["reconstruction"]["yaw"]["rmse"] == pytest.approx(error[5])


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_has_the_edges_of_repeated_actions(mine, parts, tmp_path, kind):
    """Weights are whole multiples of each other only if actions are repeated until they are."""
    opened, actions, _ = parts
    out = tmp_path / "grid.json"
    done = call("fit", *mine, "--kind", kind, "--out", out, "--workers", 1, "--json")
    # balance_weights: a share is weight * steps, so an action of the first weighs 3, as it says.
    assert opened.weights[0] == pytest.approx(
        3 * len(actions[0]) / (3 * len(actions[0]) + len(actions[1]))
    )
    repeated = np.concatenate([np.repeat(actions[0], 3, axis=0), actions[1]])
    wanted, got = fit_grid(kind, repeated), load_grid(out)
    for axis, edges in wanted.edges.items():
        # Places of quantiles depend on the number of actions, which repeating changes.
        slack = 0.1 if kind == "quantile" else 1e-9
        assert np.median(np.abs(got.edges[axis] - edges)) < slack, axis
        if kind != "quantile":
            np.testing.assert_allclose(got.edges[axis], edges, atol=1e-9)
            np.testing.assert_allclose(got.means[axis], wanted.means[axis], atol=1e-6)
    report = json.loads(done.stdout)
    assert report["num_actions"] == sum(map(len, actions))
    assert report["sampled"]
    assert report["source"] == "mine"
    assert "unit" not in report["reconstruction"]["x"]


def test_a_mixture_is_fitted_as_training_does(mine, parts, tmp_path):
    _, actions, mixture = parts
    out = tmp_path / "grid.json"
    call("fit", *mine, "--kind", "quantile", "--out", out, "--workers", 1)
    assert load_grid(out) == mixture.grid("quantile")
    call("fit", *mine, "--kind", "quantile", "--out", out, "--exclude", "hands", "--workers", 1)
    alone = fit_grid("quantile", actions[0])
    for axis, edges in alone.edges.items():
        np.testing.assert_allclose(load_grid(out).edges[axis], edges, atol=1e-9)


def test_a_sample_is_all_where_it_can_be(parts):
    _, (one, _), mixture = parts
    alone = mixture.without(["other"])
    np.testing.assert_array_equal(sample_actions(alone), one)
    half = len(one) // 2
    np.testing.assert_array_equal(sample_actions(alone, second_half=True), one[half:])
    np.testing.assert_array_equal(np.concatenate([b for b, _ in first_half(alone)]), one[:half])
    few = sample_actions(alone, 10)
    assert len(np.unique(few, axis=0)) == 10
    assert all((one == row).all(axis=1).any() for row in few)


def test_a_sample_of_a_mixture_is_drawn_by_its_shares(parts):
    opened, (one, other), mixture = parts
    drawn = sample_actions(mixture, 20_000)
    of_one = (drawn[:, None] == one).all(-1).any(1)
    of_other = (drawn[:, None] == other).all(-1).any(1)
    assert (of_one | of_other).all()
    share = of_one.mean() - (of_one & of_other).mean() / 2
    assert share == pytest.approx(opened.weights[0], abs=0.02)
    counts = np.array([(drawn == row).all(1).sum() for row in one])
    assert counts.std() < 0.1 * counts.mean()
    np.testing.assert_array_equal(drawn, sample_actions(mixture, 20_000))
    second = sample_actions(mixture, 5000, second_half=True)
    left = [actions[len(actions) // 2 :] for actions in (one, other)]
    assert ((second[:, None] == np.concatenate(left)).all(-1).any(1)).all()


def test_comparing_a_dataset_gives_the_lines_of_all_actions_at_once(demo):
    lines = json.loads(call("compare", demo, "--no-made-up", "--json").stdout)
    dataset = open_dataset(demo, card=None)
    known = compute_statistics(dataset.actions(), MASK)
    wanted = list(compare_grids(dataset.name, dataset.actions().astype(np.float64), known))
    assert len(lines) == len(wanted) == 14
    for line, other in zip(lines, wanted, strict=True):
        assert line == pytest.approx(other.to_dict(), abs=1e-6)


def test_comparing_a_mixture(mine):
    done = call("compare", *mine, "--no-made-up", "--workers", 1, "--json")
    lines = json.loads(done.stdout)
    assert {line["source"] for line in lines} == {"mine"}
    assert all(line["translation_mm"] is None for line in lines)
    exact = [line["still"] for line in lines if line["zero_bin"] and line["decoding"] == "midpoint"]
    assert max(exact) < 1e-6  # in both datasets, each by its own statistics


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fit",), "give INPUT or --mixture"),
        (("fit", "a.npy", "--root", "x"), "--root: for --mixture only"),
        (("fit", "--mixture", "x", "--split", "val"), "stand in its file"),
        (("fit", "--mixture", "rtz"), "did you mean rtx"),
        (("compare", "--exclude", "x"), "--exclude: for --mixture only"),
    ],
)
def test_refusals(arguments, words):
    done = CliRunner().invoke(app, ["grids", *arguments])
    assert done.exit_code == 1
    assert words in done.stderr
