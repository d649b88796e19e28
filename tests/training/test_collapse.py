"""Collapsed policies are warned of, healthy ones are not, and no one at the first validation."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.spaces import end_effector_delta, joint_space, two_arms_delta
from spatialvla_ft.training.build import build
from spatialvla_ft.training.collapse import (
    CollapseWatch,
    Predictions,
    collapsed,
    spread_metrics,
)
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.validation import Validation, joined

FRAMES, CHUNK = 40, 2


def healthy(space, seed=0, noise=0.3):
    """Predictions that follow the data with noise, and follow the pictures when swapped."""
    rng = np.random.default_rng(seed)
    grid = ActionGrid.uniform(space=space)
    truth = rng.uniform(-1, 1, (FRAMES * CHUNK, space.dim))
    guess = np.clip(truth + rng.normal(0, noise, truth.shape), -1, 1)
    grippers = [g.role == "gripper" for g in space.groups for _ in g.names]
    for values in (truth, guess):
        values[:, grippers] = values[:, grippers] > 0
    ids, own = (grid.encode(values).reshape(FRAMES, -1) for values in (guess, truth))
    half = FRAMES // 2
    seen = Predictions(
        guess=guess,
        truth=truth,
        guess_ids=grid.encode(guess),
        truth_ids=grid.encode(truth),
        ids=ids,
        swapped_ids=np.roll(ids, half, axis=0),
        own_ids=own,
        other_ids=np.roll(own, half, axis=0),
        loss=2.0,
        swapped_loss=3.5,
    )
    return seen, grid


def with_guess(seen, grid, **columns):
    """The same, with dimensions of the prediction replaced by a value."""
    guess = seen.guess.copy()
    for index, value in columns.items():
        guess[:, int(index.removeprefix("d"))] = value
    return replace(seen, guess=guess, guess_ids=grid.encode(guess))


SPACES = pytest.mark.parametrize("space", [end_effector_delta(), two_arms_delta(), joint_space(6)])


@SPACES
@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_healthy_policies_are_not_blamed(space, noise):
    seen, grid = healthy(space, noise=noise)
    assert collapsed(seen, grid.slots, space) == {}
    metrics = spread_metrics(seen, grid.slots, space)
    names = [g for g in metrics if g.startswith("variance_ratio/")]
    assert len(names) == space.dim
    for i, name in enumerate(names):
        wanted = np.var(seen.guess[:, i]) / np.var(seen.truth[:, i])
        assert metrics[name] == pytest.approx(wanted)
    assert metrics["image/loss_gain"] == 1.5


@SPACES
def test_a_constant_action_is_found(space):
    seen, grid = healthy(space)
    guess = np.repeat(seen.guess[:1], len(seen.guess), axis=0)
    found = collapsed(replace(seen, guess=guess, guess_ids=grid.encode(guess)), grid.slots, space)
    assert "constant action" in found
    assert "nearly the same action" in found["constant action"]


def test_one_constant_dimension_is_named():
    space = end_effector_delta()
    seen, grid = healthy(space)
    found = collapsed(with_guess(seen, grid, d2=0.01), grid.slots, space)
    assert list(found) == ["constant z"]
    assert "0.00 % of the data's variance" in found["constant z"]


@pytest.mark.parametrize(("value", "never"), [(1.0, "closes"), (0.0, "opens")])
def test_a_gripper_that_never_moves_is_found(value, never):
    space = two_arms_delta()
    seen, grid = healthy(space)
    found = collapsed(with_guess(seen, grid, d13=value), grid.slots, space)
    assert list(found) == [f"right_gripper never {never}"]
    share = np.mean(seen.truth[:, 13] != value)
    assert f"the data does in {share:.1%} of them" in found[f"right_gripper never {never}"]


def test_a_gripper_that_the_data_never_moves_either_may_stay():
    space = end_effector_delta()
    seen, grid = healthy(space)
    truth = seen.truth.copy()
    truth[:, 6] = 1
    truth[0, 6] = 0
    still = replace(seen, truth=truth, truth_ids=grid.encode(truth))
    assert collapsed(with_guess(still, grid, d6=1.0), grid.slots, space) == {}


def test_a_rotation_that_is_never_used_is_found():
    space = end_effector_delta()
    seen, _ = healthy(space)
    rng = np.random.default_rng(1)
    grid = ActionGrid.from_quantiles(rng.uniform(-1, 1, (500, 7)), zero_bin=True)
    seen = replace(seen, truth_ids=grid.encode(seen.truth))
    found = collapsed(with_guess(seen, grid, d3=0, d4=0, d5=0), grid.slots, space)
    assert "rotation is always no motion in 80" in found["rotation never used"]
    assert {"constant roll", "constant pitch", "constant yaw"} < set(found)


def test_a_policy_that_does_not_look_is_found():
    space = end_effector_delta()
    seen, grid = healthy(space)
    blind = replace(seen, swapped_ids=seen.ids, swapped_loss=seen.loss + 0.001)
    found = collapsed(blind, grid.slots, space)
    assert list(found) == ["image-blind"]
    assert "change 0.0% of the predicted tokens" in found["image-blind"]
    assert collapsed(replace(blind, swapped_loss=2.2), grid.slots, space) == {}
    same = replace(blind, other_ids=seen.own_ids)
    assert collapsed(same, grid.slots, space) == {}, "the data asks for no other action"


def test_a_few_frames_say_nothing():
    space = end_effector_delta()
    seen, grid = healthy(space)
    few = {n: getattr(seen, n)[:4] for n in ("ids", "swapped_ids", "own_ids", "other_ids")}
    flat = with_guess(seen, grid, **{f"d{i}": 0.0 for i in range(7)})
    assert collapsed(flat, grid.slots, space)
    assert collapsed(replace(flat, **few), grid.slots, space) == {}


def test_batches_join_by_their_frames():
    space = end_effector_delta()
    seen, _ = healthy(space)
    one = replace(seen, loss=1.0)
    half = {n: getattr(seen, n)[:20] for n in ("ids", "swapped_ids", "own_ids", "other_ids")}
    both = joined([one, replace(seen, loss=4.0, **half)])
    assert both.loss == pytest.approx((40 * 1 + 20 * 4) / 60)
    assert len(both.guess) == 2 * len(seen.guess)
    assert len(both.ids) == 60


# -------------------------------------------------------------------- when it speaks


def test_the_first_validations_are_not_judged():
    watch = CollapseWatch(steps=1000, validate_every=100)
    judged = [step for step in range(100, 1001, 100) if watch.judges(step)]
    assert judged == list(range(200, 1001, 100))
    rare = CollapseWatch(steps=1000, validate_every=400)
    assert [step for step in (400, 800, 1000) if rare.judges(step)] == [800, 1000]
    assert CollapseWatch(steps=10, validate_every=100).judges(10), "the end of a run counts"


def test_a_warning_is_given_once_and_taken_back():
    watch = CollapseWatch(steps=10, validate_every=1)
    assert watch.take(1, {"blind": "words"}) == ({}, [])
    assert watch.take(4, {"blind": "words"}) == ({"blind": "words"}, [])
    assert watch.take(5, {"blind": "other words"}) == ({}, [])
    assert watch.standing == {"blind": "other words"}
    assert watch.take(6, {}) == ({}, ["blind"])
    assert watch.take(7, {"blind": "words"}) == ({"blind": "words"}, [])


# -------------------------------------------------------------------- in training


def warned(recipe, sabotage, caplog):
    """What is logged of collapse when a run is trained whose model was sabotaged."""
    run = build(recipe)
    sabotage(run)
    with caplog.at_level(logging.WARNING, "spatialvla_ft.training.validation"):
        train(run)
    return [r.getMessage() for r in caplog.records if "held out" in r.getMessage()]


LIVELY = [
    "train.steps=5",
    "train.validate_every=1",
    "train.validate_samples=24",
    "train.learning_rate=1e-30",  # lost in rounding: weights stay as they are
    "data.holdout=0.5",
]


def blinded(run):
    """Image features become one and the same."""
    run.model.multi_modal_projector.register_forward_hook(lambda m, i, o: o * 0)


def one_action(run):
    """One token of every slot beats all others."""
    head = run.model.head
    begin, grid = run.processor.action_tokenizer.begin_id, run.processor.grid

    def biased(hidden):
        logits = head(hidden).clone()
        logits[..., [begin + offset for offset in grid.offsets]] += 1000
        return logits

    run.model.head = biased
    weight = run.model.spatial_embed_tokens.weight
    with torch.no_grad():
        weight.zero_()[:, 0] = 1  # equal to the last bit in any order: greedy picks the first


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [(blinded, "acts without looking"), (one_action, "nearly the same action")],
)
def test_sabotaged_models_are_warned_of_once_and_not_at_first(recipe_of, caplog, sabotage, said):
    found = warned(recipe_of("full", "out", LIVELY), sabotage, caplog)
    about = [line for line in found if said in line]
    assert len(about) == 1
    assert about[0].startswith("step 2, held out: ")


def test_a_model_that_looks_is_not_called_blind(recipe_of, caplog):
    """Random weights see: their answers follow the pictures, whatever else they lack."""
    recipe = recipe_of("full", "out", [*LIVELY, "train.validate_every=4"])
    found = warned(recipe, lambda run: None, caplog)
    assert not [line for line in found if "acts without looking" in line]
    lines = [json.loads(x) for x in (recipe.output / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["step"] == 5 and "validation/loss" in line]
    assert last["validation/image/tokens_changed"] > 0.05
    assert abs(last["validation/image/loss_gain"]) > 0
    assert last["validation/warnings"] == len({line.split(": ")[1] for line in found})


def test_validation_adds_up_samples_not_batches(recipe_of):
    """Seven frames in batches of two: three and a half batches, each frame counted once."""
    run = build(recipe_of("full", "out", ["train.validate_samples=7", "data.holdout=0.5"]))
    found = Validation(run, Accelerator())(run.model, 0)
    (held,) = run.heldout
    frames = np.linspace(0, len(held) - 1, 7).astype(int).tolist()
    losses = []
    run.model.eval()
    for frame in frames:
        with torch.no_grad():
            losses.append(float(run.model(**run.collate([held[frame]])).loss))
    assert found["validation/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert 0 <= found["validation/accuracy/rotation"] <= 1
