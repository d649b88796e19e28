"""What is said of a grid before the first step, and that the plan counts the grid of the run."""

from __future__ import annotations

import numpy as np
import pytest
from array_store import array_dataset
from tiny_world import BINS

from spatialvla_ft.actions.fit import fit_grid
from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.grid_io import save_grid
from spatialvla_ft.actions.normalise import normalise
from spatialvla_ft.actions.spaces import end_effector_delta, joint_space
from spatialvla_ft.data.stats.statistics import compute_statistics, normalised_dimensions
from spatialvla_ft.memory.plan import measure_memory, plan_memory
from spatialvla_ft.memory.workloads import config_of
from spatialvla_ft.training import action_ranges
from spatialvla_ft.training.action_ranges import run_statistics
from spatialvla_ft.training.build import build
from spatialvla_ft.training.identity import flat
from spatialvla_ft.training.preflight.grid import coarse_motion, noise_words
from spatialvla_ft.training.preflight.report import preflight

LARGE = (16, 32, 16, 16, 16, 16, 2)
"""12,290 tokens."""


@pytest.fixture
def with_grid(recipe_of, tmp_path):
    """A recipe of an adapter whose grid is read from a file."""

    def make(grid, *overrides):
        save_grid(grid, tmp_path / "grid.json")
        return recipe_of("lora", overrides=[f"grid.file={tmp_path / 'grid.json'}", *overrides])

    return make


def other_robot(bins=BINS):
    """Fitted to actions that are all near one corner."""
    rng = np.random.default_rng(0)
    actions = np.clip(rng.normal([0.8, 0.7, 0.9, -0.8, 0.8, 0.9, 0], 0.03, (500, 7)), -1, 1)
    actions[:, 6] = rng.random(500) < 0.5
    return fit_grid("quantile", actions, bins=bins)


def test_the_grid_of_another_robot_is_told_beside_a_fitted_one(with_grid):
    report = preflight(build(with_grid(other_robot())))
    (told,) = [text for text in report.warnings if "it is of other motion" in text]
    assert f"{report.grid.loss:.3g} of the range" in told
    assert f"with as many bins {report.grid.fitted:.3g}" in told
    assert report.grid.loss > 2 * report.grid.fitted
    assert "grid.fit=quantile" in told
    assert report.plan["grid"].startswith("quantile, ")


def test_a_fitted_grid_is_not_complained_of(recipe_of, with_grid):
    run = build(recipe_of("lora"))
    assert not [text for text in preflight(run).warnings if "other motion" in text]
    again = build(with_grid(run.processor.grid))  # what `adapt` does with the grid it fitted
    report = preflight(again)
    assert not [text for text in report.warnings if "other motion" in text or "tokens" in text]
    assert report.grid.loss == pytest.approx(report.grid.fitted, rel=0.05)
    used, of = report.grid.used["rotation"]
    assert 0 < used <= of == BINS[3] * BINS[4] * BINS[5]


def test_far_more_tokens_than_steps(with_grid):
    run = build(with_grid(ActionGrid.uniform(bins=LARGE), "grid.adapt_embeddings=true"))
    (told,) = [text for text in preflight(run).warnings if "action tokens" in text]
    frames = len(run.datasets[0])
    assert f"the grid has 12,290 action tokens, and there are {frames} recorded steps" in told
    assert f"no more than {2 * frames + 2:,} tokens can ever be a label" in told
    assert "Usual are 8,194" in told


@pytest.mark.parametrize("how", ["grid.file", "grid.bins"])
def test_the_plan_counts_the_tokens_that_the_run_has(recipe_of, with_grid, how):
    if how == "grid.file":
        recipe = with_grid(ActionGrid.uniform(bins=LARGE))
    else:
        recipe = recipe_of("lora", overrides=[f"grid.bins={','.join(map(str, LARGE))}"])
    run = build(recipe)
    plain, own = config_of(recipe_of("lora", output="plain")), config_of(recipe)
    assert own.text_config.vocab_size == run.spatialvla.config.text_config.vocab_size
    assert own.action_token_counts == run.spatialvla.config.action_token_counts
    plan = plan_memory(recipe, own)
    parameters = list(run.model.parameters())
    assert plan.total == sum(p.nbytes for p in parameters)
    assert plan.trainable == sum(p.nbytes for p in parameters if p.requires_grad)
    assert plan.peak == pytest.approx(measure_memory(recipe, own).peak, rel=0.1)
    small = plan_memory(recipe, plain)
    rows = sum(own.action_token_counts) - sum(plain.action_token_counts)
    width = own.text_config.hidden_size
    # Embeddings, head, the table, and the table's copy that is trained whole.
    assert plan.trainable - small.trainable == rows * width * 4
    assert plan.total - small.total == 4 * rows * width * 4
    assert plan.peak - small.peak > 5 * rows * width * 4


def steps(roll, yaw, count=3000, seed=0):
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(count, 7)) * [0.02, 0.03, 0.01, roll, roll, yaw, 0]
    actions[:, 6] = rng.random(count) < 0.5
    return actions.astype(np.float32)


def known_of(actions, space):
    return compute_statistics(actions, normalised_dimensions(space), units=space.units)


def test_bins_that_hold_noise_are_told_with_the_override_that_saves_them():
    space = end_effector_delta()
    known = known_of(steps(5e-5, 0.1), space)
    (told,) = noise_words(ActionGrid.uniform(), [known], space)
    assert "roll (98 % of the steps within 0.00022 rad), pitch (" in told
    assert "fill 16 x 16 bins: 4,096 rotation tokens, 16 without" in told
    assert "grid.bins=16,32,8,1,1,16,2 " in told
    assert noise_words(ActionGrid.uniform(bins=(16, 32, 8, 1, 1, 16, 2)), [known], space) == []
    (with_zero,) = noise_words(ActionGrid.uniform(zero_bin=True), [known], space)
    assert "grid.bins=16,32,8,3,3,16,2 " in with_zero
    # What turns in any dataset of a mixture is no noise, and neither is rare motion.
    turning = known_of(steps(0.1, 0.1), space)
    assert noise_words(ActionGrid.uniform(), [known, turning], space) == []
    rare = steps(5e-5, 0.1)
    rare[:3, 3:5] = 0.2
    assert noise_words(ActionGrid.uniform(), [known_of(rare, space)], space) == []


def test_the_grid_without_noise_loses_the_noise_alone():
    space, actions = end_effector_delta(), steps(5e-5, 0.1)
    known = known_of(actions, space)
    values = normalise(actions, known)
    grid = fit_grid("gaussian", values, bins=(16, 32, 8, 1, 1, 16, 2))
    back = grid.decode(grid.encode(values))
    off = np.abs(back - values).max(axis=0) * (known.q99 - known.q01) / 2
    assert off[3:5].max() < 2e-4
    assert grid.counts == (4096, 16, 2)


def test_a_joint_that_is_noise_has_a_slot_of_its_own():
    space = joint_space(2)
    rng = np.random.default_rng(0)
    actions = np.stack([rng.normal(size=900), rng.normal(size=900) * 1e-5, np.zeros(900)], axis=1)
    known = known_of(actions.astype(np.float32), space)
    (told,) = noise_words(ActionGrid.uniform(space=space), [known], space)
    assert "joint_2" in told
    assert "grid.bins=256,1,2 " in told


def test_motion_that_comes_back_coarse_is_named():
    """Rare turns of many sizes: a Gaussian's outermost bins hold nearly all of them."""
    rng = np.random.default_rng(1)
    actions = steps(0.1, 0.0)
    actions[:40, 5] = rng.uniform(0.05, 0.3, 40)
    values = normalise(actions, known_of(actions, end_effector_delta()))
    (told,) = coarse_motion(fit_grid("gaussian", values), values)
    assert "yaw by " in told
    assert "roll" not in told
    assert "grid.fit=quantile" in told
    assert coarse_motion(fit_grid("quantile", values), values) == []


@pytest.fixture
def rare(tmp_path):
    """A dataset whose yaw turns in one step of a hundred."""
    actions = steps(0.1, 0.0)
    actions[:20, 5] = 0.2
    return array_dataset([{"action": part} for part in np.split(actions, 30)], tmp_path)


def test_a_run_keeps_the_ranges_that_it_began_with(rare, recipe_of, monkeypatch, caplog):
    recipe = recipe_of("full")
    (new,) = run_statistics(recipe, [rare]).values()
    assert new.q99[5] == pytest.approx(0.2)
    plain = new.by_quantiles()
    for began, kept in ((plain, 0.0), (new, 0.2)):
        saved = flat({"statistics": {rare.name: began.to_dict()}})
        both = [recipe.output / "step-1", recipe.output / "step-2"]
        damaged = {"step-1": saved}  # the newest cannot be read, the one before counts
        monkeypatch.setattr(action_ranges, "all_checkpoints", lambda _, both=both: both)
        monkeypatch.setattr(action_ranges, "stored_identity", lambda p, d=damaged: d[p.name])
        caplog.clear()
        (found,) = run_statistics(recipe, [rare]).values()
        assert found.q99[5] == pytest.approx(kept)
        told = "every yaw decodes to 0 rad; the data reach 0.2" in caplog.text
        assert told == (kept == 0.0)
        assert "quantiles" in found.to_dict()["action"] or kept == 0.0
        (fresh,) = run_statistics(recipe, [rare], fresh=True).values()
        assert fresh.q99[5] == pytest.approx(0.2)
    asked = recipe_of("full", overrides=["data.action_range=quantiles"])
    (found,) = run_statistics(asked, [rare]).values()
    assert found.q99[5] == 0
