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
from spatialvla_ft.actions.reconstruction import fixed_dimensions
from spatialvla_ft.actions.spaces import end_effector_delta, joint_space, two_arms_delta
from spatialvla_ft.heads.grid_tokens import GridTokens
from spatialvla_ft.training.build import build
from spatialvla_ft.training.collapse import (
    CollapseWatch,
    Predictions,
    collapsed,
    lenders,
    spread_metrics,
)
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.validation import Validation, joined

FRAMES, CHUNK = 40, 2


def healthy(space, seed=0, noise=0.3):
    """Predictions that follow the data with noise, and pictures and words when exchanged."""
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
        losses=np.full(FRAMES, 2.0),
        swapped_losses=np.full(FRAMES, 3.5),
        told=np.arange(FRAMES) % 4 > 0,
        told_ids=np.where(np.arange(FRAMES)[:, None] % 4 > 0, np.roll(ids, half, axis=0), ids),
        told_losses=np.where(np.arange(FRAMES) % 4 > 0, 2.4, 2.0),
        lender_ids=np.roll(own, half, axis=0),
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
    assert metrics["words/loss_gain"] == pytest.approx(0.4)
    asked = np.arange(FRAMES) % 4 > 0
    changed = np.mean(seen.ids[asked] != np.roll(seen.ids, FRAMES // 2, axis=0)[asked])
    assert metrics["words/tokens_changed"] == pytest.approx(changed)


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


def test_a_dimension_with_a_single_bin_cannot_vary():
    seen, _ = healthy(end_effector_delta())
    grid = ActionGrid.uniform(bins=(16, 32, 8, 1, 16, 16, 2))
    assert fixed_dimensions(grid) == ("roll",)
    stuck = with_guess(seen, grid, d3=0.0)
    assert list(collapsed(stuck, grid.slots, end_effector_delta())) == ["constant roll"]
    fixed = fixed_dimensions(grid)
    assert collapsed(stuck, grid.slots, end_effector_delta(), fixed) == {}


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
    blind = replace(seen, swapped_ids=seen.ids, swapped_losses=seen.losses + 0.001)
    found = collapsed(blind, grid.slots, space)
    assert list(found) == ["image-blind"]
    assert "change 0.0% of the predicted tokens" in found["image-blind"]
    assert collapsed(replace(blind, swapped_losses=seen.losses + 0.2), grid.slots, space) == {}
    same = replace(blind, other_ids=seen.own_ids)
    assert collapsed(same, grid.slots, space) == {}, "the data asks for no other action"


def deaf(seen, frames=FRAMES):
    """The same of a policy that does not read; so many frames have another instruction."""
    told = np.arange(FRAMES) < frames
    return replace(seen, told=told, told_ids=seen.ids, told_losses=seen.losses + 0.001)


def test_a_policy_that_does_not_read_is_found():
    space = end_effector_delta()
    seen, grid = healthy(space)
    found = collapsed(deaf(seen), grid.slots, space)
    assert list(found) == ["word-blind"]
    assert "instructions of other frames change 0.0% of the predicted" in found["word-blind"]
    assert "acts without reading" in found["word-blind"]
    assert spread_metrics(deaf(seen), grid.slots, space)["words/loss_gain"] == pytest.approx(0.001)
    stirred = seen.ids.copy()
    stirred.flat[: int(0.045 * stirred.size)] += 1  # more than other pictures may leave as they are
    assert "word-blind" in collapsed(replace(deaf(seen), told_ids=stirred), grid.slots, space)
    louder = replace(deaf(seen), told_losses=seen.losses + 0.2)
    assert collapsed(louder, grid.slots, space) == {}
    same = replace(deaf(seen), lender_ids=seen.own_ids)
    assert collapsed(same, grid.slots, space) == {}, "the data asks for no other action"


def test_only_frames_that_were_told_something_else_are_judged():
    """Frames without another instruction are the same by themselves, and must not thin it out."""
    space = end_effector_delta()
    seen, grid = healthy(space)
    told = np.arange(FRAMES) < 8
    kept = np.where(told[:, None], seen.told_ids, seen.ids)
    follows = replace(seen, told=told, told_ids=kept, told_losses=seen.losses + 0.011 * told)
    assert collapsed(follows, grid.slots, space) == {}
    assert collapsed(replace(follows, told_ids=seen.ids), grid.slots, space) == {}
    assert "word-blind" in collapsed(deaf(seen, 8), grid.slots, space)


@pytest.mark.parametrize("frames", [0, 7])
def test_where_there_is_one_instruction_nobody_can_read(frames):
    space = end_effector_delta()
    seen, grid = healthy(space)
    assert collapsed(deaf(seen, frames), grid.slots, space) == {}
    metrics = spread_metrics(deaf(seen, frames), grid.slots, space)
    assert ("words/tokens_changed" in metrics) == (frames > 0)


def test_who_lends_an_instruction():
    assert lenders(["a", "b", "a", "b"]) == [3, 0, 1, 2]
    assert lenders(["touch red", "Touch  red.", "touch blue", "TOUCH RED"]) == [2, 2, 0, 2]
    assert lenders(["one", "One!", " one"]) == [0, 1, 2]
    assert lenders(["", "go"]) == [1, 0]


def few_frames(seen, count):
    """Only the first frames of what is kept by frame."""
    names = ("ids", "swapped_ids", "own_ids", "other_ids", "losses", "swapped_losses")
    names += ("told", "told_ids", "told_losses", "lender_ids")
    return {name: getattr(seen, name)[:count] for name in names}


def test_a_few_frames_say_nothing():
    space = end_effector_delta()
    seen, grid = healthy(space)
    few = few_frames(seen, 4)
    flat = with_guess(seen, grid, **{f"d{i}": 0.0 for i in range(7)})
    assert collapsed(flat, grid.slots, space)
    assert collapsed(replace(flat, **few), grid.slots, space) == {}


def test_batches_join_by_their_frames():
    space = end_effector_delta()
    seen, grid = healthy(space)
    half = replace(seen, **few_frames(seen, 20))
    both = joined([seen, replace(half, swapped_losses=half.losses + 0.3)])
    assert spread_metrics(both, grid.slots, space)["image/loss_gain"] == pytest.approx(
        (40 * 1.5 + 20 * 0.3) / 60
    )
    assert len(both.guess) == 2 * len(seen.guess)
    assert len(both.ids) == len(both.told) == 60


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


def deafened(run):
    """Every word gets one and the same embedding."""
    run.model.get_input_embeddings().register_forward_hook(lambda m, i, o: o * 0)


def one_action(run):
    """One token of every slot beats all others."""
    begin, grid = run.processor.action_tokenizer.begin_id, run.processor.grid

    class Biased(GridTokens):
        def logits(self, hidden):
            logits = super().logits(hidden).clone()
            logits[..., [begin + offset for offset in grid.offsets]] += 1000
            return logits

    whole = type(run.model)
    tokens = property(lambda model: Biased(**vars(whole.grid_tokens.fget(model))))
    run.model.__class__ = type(whole.__name__, (whole,), {"grid_tokens": tokens})
    weight = run.model.spatial_embed_tokens.weight
    with torch.no_grad():
        weight.zero_()[:, 0] = 1  # equal to the last bit in any order: greedy picks the first


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        (blinded, "acts without looking"),
        (deafened, "acts without reading"),
        (one_action, "nearly the same action"),
    ],
)
def test_sabotaged_models_are_warned_of_once_and_not_at_first(recipe_of, caplog, sabotage, said):
    found = warned(recipe_of("full", "out", LIVELY), sabotage, caplog)
    about = [line for line in found if said in line]
    assert len(about) == 1
    assert about[0].startswith("step 2, held out: ")


def test_a_model_that_looks_and_reads_is_not_called_blind(recipe_of, caplog):
    """Random weights see and read: their answers follow both, whatever else they lack."""
    recipe = recipe_of("full", "out", [*LIVELY, "train.validate_every=4"])
    found = warned(recipe, lambda run: None, caplog)
    assert not [line for line in found if "acts without" in line]
    lines = [json.loads(x) for x in (recipe.output / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["step"] == 5 and "validation/loss" in line]
    assert last["validation/image/tokens_changed"] > 0.05
    assert abs(last["validation/image/loss_gain"]) > 0
    assert last["validation/words/tokens_changed"] > 0.05
    assert abs(last["validation/words/loss_gain"]) > 0
    assert last["validation/warnings"] == len({line.split(": ")[1] for line in found})


def test_other_words_go_through_the_collator_and_nothing_else_changes(recipe_of):
    run = build(recipe_of("full", "out", [*LIVELY, "train.batch_size=4"]))
    collated, collate = [], run.collate

    def recording(samples):
        collated.append(list(samples))
        return collate(samples)

    recording.depth = collate.depth
    run.collate = recording
    found = Validation(run, Accelerator())(run.model, 5)
    own, told = collated[:2]
    assert [t.instruction for t in told] == [own[j].instruction for j in (2, 3, 0, 1)]
    for i in range(4):
        assert told[i].instruction != own[i].instruction
        assert told[i].images is own[i].images
        assert told[i].actions is own[i].actions
    # The figure, counted again by hand.
    gains = []
    for before, after in zip(collated[::2], collated[1::2], strict=True):
        for pair in zip(before, after, strict=True):
            with torch.no_grad():
                losses = [float(run.model(**collate([one])).loss) for one in pair]
            gains.append(losses[1] - losses[0])
    assert found["validation/words/loss_gain"] == pytest.approx(np.mean(gains), abs=1e-4)


def test_one_instruction_is_not_judged(recipe_of, caplog):
    def one_task(run):
        deafened(run)
        read = run.sample
        run.sample = lambda *where: replace(read(*where), instruction="go to the püt")

    recipe = recipe_of("full", "out", LIVELY)
    found = warned(recipe, one_task, caplog)
    assert not [line for line in found if "reading" in line]
    assert "validation/words/loss_gain" not in (recipe.output / "metrics.jsonl").read_text()


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
