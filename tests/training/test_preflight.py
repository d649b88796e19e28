"""The report before the first step: right on a good run, and each kind of nonsense is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spatialvla_ft.actions.gaussians import fit_gaussians
from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.spaces import RawActions, end_effector_delta, translation_delta
from spatialvla_ft.cli.main import app
from spatialvla_ft.policy.inputs import Collator
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.preflight.report import FILE, PreflightError, preflight
from spatialvla_ft.training.preflight.samples import outside_its_bin


@pytest.fixture(scope="module")
def built():
    """One run; tests that break it work on a copy."""
    return {}


@pytest.fixture
def run(recipe_of, built):
    if not built:
        built["run"] = build(recipe_of("full", overrides=["data.holdout=0.3"]))
    return copy.copy(built["run"])


def changed(run, change):
    """The run with every batch changed on its way to the model."""
    collate = copy.copy(run.collate)

    class Changing(Collator):
        def __call__(self, samples):
            batch = super().__call__(samples)
            change(batch, samples)
            return batch

    collate.__class__ = Changing
    run.collate = collate
    return run


def test_a_good_run_is_described(run):
    report = preflight(run)
    assert report.problems == []
    report.refuse()
    (facts,) = report.datasets
    dataset = run.datasets[0]
    assert (facts.episodes, facts.frames) == (len(dataset.episodes), len(dataset))
    assert facts.heldout == len(run.heldout[0].episodes)
    assert facts.share == 1
    assert facts.not_finite == {"actions": 0, "proprioception": 0}
    assert [one.name for one in facts.dimensions] == list(dataset.action_space.names)
    statistics = run.processor.statistics[dataset.name]["action"]
    actions = np.concatenate([dataset.standardised(e).action for e in dataset.episodes])
    for i, one in enumerate(facts.dimensions[:6]):
        low, high = statistics["q01"][i], statistics["q99"][i]
        assert (one.q01, one.q99) == (low, high)
        outside = np.mean([not low - 1e-9 <= value <= high + 1e-9 for value in actions[:, i]])
        assert one.outside == pytest.approx(outside, abs=1e-6)
    assert {camera.name for camera in facts.cameras} == set(run.processor.layout.cameras)
    assert report.seconds < 10


def test_samples_are_read_back_from_the_tokens_that_the_model_gets(run):
    report = preflight(run)
    for sample in report.samples:
        count = run.processor.num_observation_tokens
        assert sample.prompt == f"[{count} image tokens]<bos>{sample.instruction}\n"
        recorded, decoded = np.array(sample.recorded), np.array(sample.decoded)
        assert recorded.shape == decoded.shape == (2, 7)
        assert np.abs(recorded - decoded)[:, :6].max() < np.ptp(recorded) + 0.5
        for values in sample.pictures.values():
            assert 0 <= values["min"] < values["mean"] < values["max"] <= 1
        assert sample.depth["median"] > 0


def test_the_report_lies_in_the_output_folder(recipe_of):
    recipe = recipe_of("lora", overrides=["train.steps=1", "lora.alpha=2"])
    train(build(recipe))
    written = json.loads((recipe.output / FILE).read_text())
    assert written["plan"]["LoRA"].startswith("rank 4, alpha 2: updates are scaled by 0.5")
    assert "2 samples a step = 2 at once x 1 accumulated x 1 process" in written["plan"]["batch"]
    assert {group["name"] for group in written["groups"] if group["adapters"]}


# -------------------------------------------------------------------- nonsense


def one_colour(batch, samples):
    batch["pixel_values"][0] = 0.25


def cut_short(batch, samples):
    """The last word of the first prompt is masked away, as a limit on the length would."""
    real = batch["attention_mask"][0].bool() & ~batch["token_type_ids"][0].bool()
    last = int(real.nonzero()[-1])
    batch["attention_mask"][0, last - 4 : last + 1] = 0


def shifted_labels(batch, samples):
    """Rotation tokens of another row of the grid."""
    labels = batch["labels"]
    places = (labels[0] != -100).nonzero()[:, 0]
    labels[0, places[1]] = labels[0, places[1]] + (1 if labels[0, places[1]] % 2 else -1)


def no_action_tokens(batch, samples):
    places = (batch["labels"][0] != -100).nonzero()[:, 0]
    batch["labels"][0, places[0]] = 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_colour, "picture of camera .* is one colour"),
        (cut_short, "the prompt is cut short"),
        (shifted_labels, r"another bin of (roll|pitch|yaw)"),
        (no_action_tokens, "the label tokens cannot be decoded"),
    ],
)
def test_nonsense_stops_the_run(run, change, said):
    with pytest.raises(PreflightError, match=f"(?s){said}"):
        train(changed(run, change))
    assert not (run.recipe.output / "checkpoints").exists()


def test_everything_is_said_at_once(run):
    def both(batch, samples):
        one_colour(batch, samples)
        no_action_tokens(batch, samples)

    report = preflight(changed(run, both))
    assert len(report.problems) == 2
    with pytest.raises(PreflightError, match=r"(?s)2 problem\(s\).*decoded.*one colour"):
        report.refuse()


def test_statistics_of_other_data_are_seen(run):
    """The grid's tokens are made with one set of statistics, and read with another."""
    run.processor = copy.deepcopy(run.processor)
    entry = run.processor.statistics[run.datasets[0].name]["action"]
    entry["q99"] = [value + 0.5 * (value - low) for value, low in zip(entry["q99"], entry["q01"],
                                                                       strict=True)]  # fmt: skip
    report = preflight(run)
    assert any("grid and statistics do not belong together" in text for text in report.problems)


def test_numbers_that_are_not_finite_are_refused(run, monkeypatch):
    dataset = run.datasets[0]
    whole = dataset.standardised
    episode = int(dataset.episodes[0])

    def damaged(which):
        found = whole(which)
        if which != episode:
            return found
        action = found.action.copy()
        action[0, 2] = np.nan
        return replace(found, action=RawActions(action))

    monkeypatch.setattr(dataset, "standardised", damaged)
    monkeypatch.setattr("spatialvla_ft.training.preflight.report.first_samples", lambda *a, **k: [])
    report = preflight(run)
    assert any("1 numbers of the actions are NaN or infinite" in text for text in report.problems)


def test_a_run_that_trains_nothing_is_refused(run):
    run.model = copy.deepcopy(run.model).requires_grad_(False)
    assert any("nothing is trained" in text for text in preflight(run).problems)


# -------------------------------------------------------------------- suspicions


def test_too_little_memory_warns(run):
    memory = {"planned": 80 * 2**30, "available": 36 * 2**30, "device": "a GPU"}
    (text,) = [t for t in preflight(run, memory=memory).warnings if "GiB" in t]
    assert "80.0 GiB of tensors are planned, a GPU has 36.0 GiB" in text
    memory["planned"] = 30 * 2**30
    assert not [t for t in preflight(run, memory=memory).warnings if "GiB" in t]


def test_an_assumed_camera_warns(run):
    run.recipe = run.recipe.model_copy(deep=True)
    run.recipe.data.assume_intrinsics = "default"
    run.datasets = [copy.copy(run.datasets[0])]
    card = run.datasets[0].card
    run.datasets[0].card = card.model_copy(update={"intrinsics": {}})
    run.datasets[0].intrinsics = {"primary": next(iter(card.intrinsics.values()))}
    found = [t for t in preflight(run).warnings if "K is assumed" in t]
    assert len(found) == 1


def test_depth_in_the_wrong_unit_warns(run):
    def millimetres(batch, samples):
        batch["depth"] *= 1000

    found = preflight(changed(run, millimetres)).warnings
    assert any("check depth_scale" in text for text in found)


# -------------------------------------------------------------------- bins


def grids(space, actions):
    yield ActionGrid.from_quantiles(actions, space=space)
    yield ActionGrid.from_quantiles(actions, space=space, zero_bin=True)
    yield ActionGrid.uniform(space=space)
    if space.dim == 7:
        yield ActionGrid.from_gaussians(fit_gaussians(actions))
        yield ActionGrid.from_gaussians(fit_gaussians(actions), zero_bin=True)


@pytest.mark.parametrize("space", [end_effector_delta(), translation_delta()])
@pytest.mark.parametrize("decoding", ["mean", "midpoint"])
@pytest.mark.parametrize("spread", [0.02, 0.3, 2.0])
def test_every_action_decodes_into_its_own_bin(space, decoding, spread):
    """On no grid may a sound label stop a run: corners, poles, standing still, edges."""
    rng = np.random.default_rng(0)
    actions = np.clip(rng.normal(0, spread, (1000, space.dim)), -1, 1)
    actions[:100] = np.round(actions[:100])
    actions[100:120, :3] = 0
    actions[120:160, :2] = 0
    actions[160:200, 2] = 0
    actions[:, -1] = actions[:, -1] > 0
    actions = actions.astype(np.float32)
    for grid in grids(space, actions):
        decoded = grid.decode(grid.encode(actions), mode=decoding)
        assert outside_its_bin(grid, actions, decoded) == [], grid
        edges = grid.edges[grid.slots[1].axes[0]] if space.dim == 7 else [0.0]
        onto = actions[: len(edges)].copy()
        onto[:, 3 if space.dim == 7 else 0] = edges
        decoded = grid.decode(grid.encode(onto), mode=decoding)
        assert outside_its_bin(grid, onto, decoded) == [], grid


def test_the_neighbouring_bin_is_another():
    """Bins of unequal counts, so that no axis is taken for another."""
    rng = np.random.default_rng(1)
    grid = ActionGrid.uniform(bins=(4, 6, 3, 5, 4, 3, 2))
    actions = rng.uniform(-0.9, 0.9, (50, 7))
    actions[:, 6] = actions[:, 6] > 0
    ids = grid.encode(actions)
    middle = grid.decode(ids, mode="midpoint")
    for axis, column, width in (("roll", 3, 2 / 5), ("pitch", 4, 2 / 4), ("yaw", 5, 2 / 3)):
        moved = middle.copy()
        moved[:, column] += np.where(moved[:, column] > 0, -width, width)
        assert outside_its_bin(grid, actions, moved) == [axis]
    shorter = middle.copy()
    shorter[:, :3] *= 0.2
    assert "r" in outside_its_bin(grid, actions, shorter)
    flipped = middle.copy()
    flipped[:, 6] = 1 - flipped[:, 6]
    assert outside_its_bin(grid, actions, flipped) == ["gripper"]


# -------------------------------------------------------------------- the command


def test_check_ends_after_the_report_and_writes_nothing(recipe_of, monkeypatch):
    recipe = recipe_of("full")
    file = str(recipe.output.parent / "out.yaml")
    plan = {"planned": 2**30, "available": 2**33, "device": "this machine"}
    monkeypatch.setattr("spatialvla_ft.memory.machine.planned_memory", lambda run, always: plan)
    done = CliRunner().invoke(app, ["train", file, "--check"])
    assert done.exit_code == 0, done.output
    for words in ("demo/1.0.0", "label tokens say", "spatial table", "1.00 GiB of tensors planned"):
        assert words in done.output
    assert not recipe.output.exists()
    done = CliRunner().invoke(app, ["train", file, "--check", "--json"])
    report = json.loads(done.stdout)
    assert report["memory"] == plan
    assert report["datasets"][0]["name"] == "demo/1.0.0"
    assert not recipe.output.exists()


def test_check_of_nonsense_has_exit_code_one(recipe_of, monkeypatch):
    file = str(recipe_of("full").output.parent / "out.yaml")
    monkeypatch.setattr("spatialvla_ft.memory.machine.planned_memory", lambda *a, **k: None)
    whole = Collator.__call__

    def dark(self, samples):
        batch = whole(self, samples)
        batch["pixel_values"] = torch.zeros_like(batch["pixel_values"])
        return batch

    monkeypatch.setattr(Collator, "__call__", dark)
    done = CliRunner().invoke(app, ["train", file, "--check"])
    assert done.exit_code == 1
    assert "problem: " in done.output
    assert "is one colour" in " ".join(done.output.split())


def test_few_episodes_for_the_range_of_actions_warn(run):
    (facts,) = preflight(run).datasets
    assert facts.episodes == len(run.datasets[0].episodes) < 20
    told = [text for text in facts.warnings if "set the range of actions" in text]
    assert told == [text for text in told if f"{facts.episodes} episodes" in text] != []


def test_a_step_of_more_samples_than_frames_warns(run):
    assert not any("a step takes" in text for text in preflight(run).warnings)
    run.recipe = run.recipe.model_copy(
        update={"train": run.recipe.train.model_copy(update={"batch_size": 1000})}
    )
    assert any("a step takes 1,000 samples" in text for text in preflight(run).warnings)
