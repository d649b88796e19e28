"""A step that must not be taken: found before the optimiser moves, the samples named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from spatialvla_ft.training.build import build
from spatialvla_ft.training.checkpoints import all_checkpoints
from spatialvla_ft.training.guard import JSON_FILE, PICTURE_FILE, Guard
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import LossGuard, RecipeError

RULE = LossGuard(factor=3, steps=4, window=60)


def judged(guard, losses, norm=1.0):
    """What the guard says of each step of a run on one rank."""
    return [guard.judge([[loss]], norm) for loss in losses]


def test_an_ordinary_noisy_run_is_left_alone():
    rng = np.random.default_rng(0)
    falling = 9 * np.exp(-np.arange(600) / 80) + 0.2
    guard = Guard(RULE)
    assert not any(judged(guard, falling * rng.uniform(0.5, 1.6, 600)))
    assert guard.calm


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_found_on_any_rank(value):
    fault = Guard(None).judge([[1.0, 2.0], [1.0, value]], 1.0)
    assert fault == f"the loss became {value:g} (micro-batch 2 of 2, rank 1)"


def test_a_gradient_that_is_no_number_is_found():
    assert "gradient became inf" in Guard(RULE).judge([[1.0]], float("inf"))


def test_a_run_away_loss_is_found_after_so_many_steps_and_never_becomes_usual():
    guard = Guard(RULE)
    found = judged(guard, [1.0] * 60 + [3.1] * 4)
    assert [i for i, fault in enumerate(found) if fault] == [63]
    assert "3.1, above 3 times its median 1 for 4 steps in a row" in found[63]


def test_a_long_rise_does_not_become_usual_in_a_short_window():
    guard = Guard(LossGuard(factor=3, steps=30, window=10))
    found = judged(guard, [1.0] * 10 + [5.0] * 30)
    assert [i for i, fault in enumerate(found) if fault] == [39]


def test_a_short_rise_is_forgiven_but_no_checkpoint_is_written_in_it():
    guard = Guard(RULE)
    assert not any(judged(guard, [1.0] * 60 + [3.5] * 3))
    assert not guard.calm
    assert not any(judged(guard, [1.1, 3.5, 3.5, 3.5, 1.0]))
    assert guard.calm


def test_near_zero_a_multiple_is_no_rise():
    assert not any(judged(Guard(RULE), [0.01] * 60 + [0.9] * 50))


def test_without_a_rule_only_what_is_not_finite_counts():
    assert not any(judged(Guard(None), [1.0] * 60 + [50.0] * 60))


def poisoned(run, episode, step):
    """The run, with a picture of one frame whose pixels make NaN of everything."""
    collate = run.collate

    def poisoning(samples):
        batch = collate(samples)
        for i, sample in enumerate(samples):
            if (sample.episode, sample.step) == (episode, step):
                batch["pixel_values"][i] = torch.nan
        return batch

    run.collate = poisoning
    return run


@pytest.mark.parametrize("micro", [1, 2])
def test_the_samples_of_a_nan_are_named_worst_first_and_nothing_moves(recipe_of, micro):
    recipe = recipe_of(
        "full",
        overrides=[
            f"train.gradient_accumulation={micro}",
            "train.save_every=1",
            "train.steps=40",
            "data.holdout=0",
        ],
    )
    run = build(recipe)
    sample = run.datasets[0][3]
    poisoned(run, sample.episode, sample.step)
    last = {}

    def on_log(step, values):
        last.update({n: p.detach().clone() for n, p in run.model.named_parameters()}, step=step)

    with pytest.raises(FloatingPointError) as caught:
        train(run, on_log=on_log)
    written = json.loads((recipe.output / JSON_FILE).read_text())
    worst = written["samples"][0]
    assert (worst["episode"], worst["step"]) == (sample.episode, sample.step)
    assert worst["loss"] == "nan"
    assert worst["not_finite"] == ["pixel_values"]
    assert worst["instruction"] == sample.instruction
    others = written["samples"][1:]
    assert len(others) == 1, "only the micro-batch that failed"
    assert others[0]["loss"] > 0
    assert others[0]["not_finite"] == []
    message = str(caught.value)
    assert (
        f"episode {sample.episode} step {sample.step} {sample.instruction!r} (loss nan" in message
    )
    assert message.index(f"step {sample.step} ") < message.index(repr(others[0]["instruction"])[:4])
    with Image.open(recipe.output / PICTURE_FILE) as sheet:
        assert sheet.width > 400
    step = last.pop("step")
    assert written["step"] == step + 1
    assert all(torch.equal(p, last[n]) for n, p in run.model.named_parameters())
    newest = all_checkpoints(recipe.output / "checkpoints")[-1]
    assert newest.name.endswith(f"{step:08d}")


def test_a_gradient_that_is_not_finite_names_its_parameters(recipe_of):
    run = build(recipe_of("full"))
    weight = run.model.multi_modal_projector.linear.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match="norm of the gradient became") as caught:
        train(run)
    assert "not finite: multi_modal_projector.linear.weight" in str(caught.value)


def test_a_run_away_loss_stops_the_run_and_saves_nothing_of_it(recipe_of, monkeypatch):
    """A learning rate beyond reason; the rule is made quick enough for a short run."""
    monkeypatch.setattr("spatialvla_ft.training.guard.LEAST_HISTORY", 2)
    monkeypatch.setattr("spatialvla_ft.training.guard.LEAST_RISE", 0.0)
    recipe = recipe_of(
        "full",
        overrides=[
            "train.steps=40",
            "train.learning_rate=3",
            "train.save_every=1",
            "train.warmup=0.2",
            "train.loss_guard={factor: 1.2, steps: 3}",
        ],
    )
    with pytest.raises(FloatingPointError, match=r"run away: .* for 3 steps in a row") as caught:
        train(build(recipe))
    stopped = json.loads((recipe.output / JSON_FILE).read_text())["step"]
    assert f"at step {stopped}" in str(caught.value)
    newest = all_checkpoints(recipe.output / "checkpoints")[-1]
    assert int(newest.name.split("-")[1]) <= stopped - 3


def test_a_rule_that_makes_no_sense_is_refused(recipe_of):
    with pytest.raises(RecipeError, match=r"train\.loss_guard\.factor"):
        recipe_of("full", overrides=["train.loss_guard={factor: 1}"])
