"""The depth of a base's own ZoeDepth, kept where pictures come back."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialvla_ft.data.pictures import fit_step
from spatialvla_ft.depth.cache import RELATIVE_ERROR
from spatialvla_ft.models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from spatialvla_ft.training import depth_plan, step_cost
from spatialvla_ft.training.batches import Frames
from spatialvla_ft.training.build import build
from spatialvla_ft.training.identity import recipe_identity
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.preflight import report
from spatialvla_ft.training.recipe import RecipeError

LOSS_TOLERANCE = 1e-3
"""Relative; depth that is kept is off by at most 2**-11 of itself."""
OFTEN = ("train.steps=40", "train.save_every=40", "data.workers=0")


@pytest.fixture
def recipe_for(recipe_of, seeing_base):
    def make(*overrides, output="out", depth="estimate"):
        own = (f"model.base={seeing_base}", f"data.depth={depth}", "lora.dropout=0")
        return recipe_of("lora", output, [*own, *OFTEN, *overrides])

    return make


NEVER = "{source: estimate, cache: never}"


def losses(result, name="loss"):
    lines = (result.parent / "metrics.jsonl").read_text().splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


def test_kept_depth_gives_the_losses_of_depth_in_every_pass(recipe_for):
    kept, always = (
        train(build(recipe_for(output=name, depth=depth)))
        for name, depth in (("kept", "estimate"), ("always", NEVER))
    )
    assert (kept.parent / "depth_cache").is_dir()
    assert not (always.parent / "depth_cache").exists()
    assert len(losses(kept)) == 40
    np.testing.assert_allclose(losses(kept), losses(always), rtol=LOSS_TOLERANCE)
    held = [losses(result, "validation/loss") for result in (kept, always)]
    np.testing.assert_allclose(*held, rtol=LOSS_TOLERANCE)


def test_every_look_after_filling_is_read(recipe_for, monkeypatch):
    run = build(recipe_for())
    counted = []
    estimate = type(run.depth.estimator).__call__
    monkeypatch.setattr(
        type(run.depth.estimator),
        "__call__",
        lambda self, pictures, K=None: counted.append(len(pictures)) or estimate(self, pictures, K),
    )
    monkeypatch.setattr(report, "depth_share", lambda run: None)
    monkeypatch.setattr(type(run.spatialvla), "depth_of", None)  # no forward pass estimates
    told = []
    train(run, on_depth=lambda done, total: told.append((done, total)))
    plan = run.depth_plan
    assert plan.cached
    assert sum(counted) <= plan.pictures
    assert plan.looks >= 2 * plan.pictures
    entries = run.depth.cache.size()
    assert entries.entries == sum(counted)
    assert entries.bytes <= plan.bytes
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))


def test_depth_is_of_the_picture_that_inference_sees_and_a_crop_cuts_it(recipe_for, seeing_base):
    run = build(recipe_for("data.augment={crop_area: 0.5}"))
    model = SpatialVLAForConditionalGeneration.from_pretrained(seeing_base, dtype=torch.float32)
    recorded = run.datasets[0][3]
    inputs = run.processor(
        images=recorded.images["primary"],
        text=recorded.instruction,
        intrinsic=recorded.intrinsics["primary"],
    )
    whole = model.depth_of(inputs["pixel_values"])[0].numpy()
    kept = run.depth(recorded).depth["primary"]
    # The processor's filter and the loader's differ in a level of a few pixels.
    np.testing.assert_allclose(kept, whole, rtol=RELATIVE_ERROR + 5e-3)
    assert np.ptp(whole) > 0.1
    crop = Frames(run)[0, 3, 17]
    K, moved = recorded.intrinsics["primary"], crop.intrinsics["primary"]
    height, width = recorded.images["primary"].shape[:2]
    centres = np.arange(32) + 0.5
    rows = (centres - moved[1, 2]) / moved[1, 1] * K[1, 1] + K[1, 2]
    columns = (centres - moved[0, 2]) / moved[0, 0] * K[0, 0] + K[0, 2]
    at = np.ix_((rows / height * 32).astype(int), (columns / width * 32).astype(int))
    assert (crop.depth["primary"] == kept[at]).mean() > 0.9  # but for centres on a border
    assert crop.depth["primary"].shape == (32, 32)


def test_a_validated_sample_has_picture_and_depth_of_one_size(recipe_for):
    run = build(recipe_for())
    sample = run.sample(run.heldout[0], 0)
    assert sample.images["primary"].shape[:2] == sample.depth["primary"].shape == (32, 32)
    seen = fit_step(run.heldout[0][0], 32, "fast")
    np.testing.assert_array_equal(sample.images["primary"], seen.images["primary"])


@pytest.mark.parametrize(
    ("overrides", "depth", "why"),
    [
        (["train.steps=2"], "estimate", r"looked at only \d\.\d times"),
        ([], NEVER, "cache: never"),
        ([], "{source: estimate, cache_gb: 1.0e-6}", "more than cache_gb: 1e-06 allows"),
        (["model.overrides.compatibility=released"], "estimate", "depends on the others"),
    ],
)
def test_what_is_not_kept_and_why(recipe_for, overrides, depth, why, caplog):
    run = build(recipe_for(*overrides, depth=depth))
    assert not run.depth_plan.cached
    assert run.depth is None
    assert run.collate.depth == "estimate"
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(run.depth_plan.why)


def test_a_full_disk_is_left_alone(recipe_for, monkeypatch):
    monkeypatch.setattr(depth_plan, "_free", lambda folder: 1000)
    assert "what is free on the disk" in build(recipe_for()).depth_plan.why


def test_a_folder_that_is_named_is_used_or_refused(recipe_for, tmp_path):
    named = f"{{source: estimate, cache: {tmp_path}/mine}}"
    run = build(recipe_for("train.steps=2", depth=named))
    assert run.depth_plan.cached
    assert run.depth.cache.folder == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()  # nothing is written before it trains
    small = f"{{source: estimate, cache: {tmp_path}/mine, cache_gb: 1.0e-6}}"
    with pytest.raises(RecipeError, match=r"cannot be kept there: .* more than cache_gb"):
        build(recipe_for(depth=small))


def test_whether_depth_is_kept_is_no_other_run(recipe_for):
    plain = recipe_identity(recipe_for())
    assert plain["data.depth"] == "estimate"
    assert recipe_identity(recipe_for(depth=NEVER)) == plain


class KilledError(Exception):
    """In place of a signal."""


def kill_at(step):
    def on_log(done, values):
        if done == step:
            raise KilledError

    return on_log


def test_a_run_goes_on_as_it_began(recipe_for, monkeypatch):
    """One of before this was kept began with depth in every pass, and its loss must not jump."""
    often = ("train.save_every=2", "train.steps=40")
    whole = train(build(recipe_for(*often, output="whole", depth=NEVER)))
    with pytest.raises(KilledError):
        train(build(recipe_for(*often, depth=NEVER)), on_log=kill_at(5))
    result = train(build(recipe_for(*often)))
    assert not (result.parent / "depth_cache").exists()
    assert losses(result) == losses(whole)

    with pytest.raises(KilledError):
        train(build(recipe_for(*often, output="kept")), on_log=kill_at(5))
    monkeypatch.setattr(depth_plan, "_free", lambda folder: 1000)  # the disk is full by now
    run = build(recipe_for(*often, output="kept"))
    assert not run.depth_plan.cached
    train(run)
    assert run.depth_plan.cached
    never = build(recipe_for(*often, output="kept", depth=NEVER))
    shutil.rmtree(result.parents[1] / "kept" / "final")
    with pytest.raises(ValueError, match="depth fingerprint"):
        train(never)


def test_what_is_damaged_or_of_other_weights_is_estimated_again(recipe_for, seeing_base, caplog):
    run = build(recipe_for())
    sample = run.datasets[0][0]
    right = run.depth(sample).depth["primary"]
    (entry,) = run.depth.cache.folder.glob("??/*.depth")
    data = bytearray(entry.read_bytes())
    data[-3] ^= 1
    entry.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        again = run.depth(sample).depth["primary"]
    assert "is damaged and will be computed again" in caplog.text
    np.testing.assert_array_equal(again, right)
    other = replace(sample, images={"primary": np.roll(sample.images["primary"], 1, axis=1).copy()})
    run.depth(other)
    model = run.spatialvla.vision_zoe_model
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim > 1).mul_(1.5)
    from spatialvla_ft.depth.zoe_estimator import ZoeDepth

    changed = ZoeDepth(model)
    assert changed.fingerprint != run.depth.estimator.fingerprint
    assert run.depth.cache.size().entries == 2
    run.depth.cached.estimator = run.depth.estimator = changed
    run.depth(sample)
    assert run.depth.cache.size().entries == 3


def test_processes_share_the_work(recipe_for):
    run = build(recipe_for())
    one, two = (depth_plan.fill_share(run, rank, 2, None) for rank in range(2))
    assert one.estimated > 0 < two.estimated
    assert abs(len(one.keys) - len(two.keys)) <= 2
    together = one.keys | two.keys
    assert run.depth.cache.size().entries == len(together)
    all_of_it = depth_plan.fill_share(run, 0, 1, None)
    assert all_of_it.estimated == 0
    assert all_of_it.keys == together


def test_a_fresh_start_keeps_the_depth(recipe_for):
    recipe = recipe_for()
    train(build(recipe))
    run = build(recipe)
    before = run.depth.cache.size()
    train(run, resume=False)
    assert run.depth.cache.size() == before
    aside = Path(recipe.output).with_name("out.old-1")
    assert (aside / "final").is_dir()
    assert not (aside / "depth_cache").exists()


def test_only_frames_that_are_drawn_are_filled(recipe_for, tmp_path):
    named = f"{{source: estimate, cache: {tmp_path}/mine}}"
    run = build(recipe_for("train.steps=3", "data.holdout=0", depth=named))
    ((_, frames),) = depth_plan.frames_to_fill(run)
    sampler = depth_plan.make_sampler(run)
    drawn = {frame for step in range(3) for _, frame in sampler.batch(step)}
    assert set(frames.tolist()) == drawn
    assert len(drawn) < len(run.datasets[0])


def test_the_plan_says_what_depth_costs(recipe_for, monkeypatch):
    slow = step_cost.DepthShare(depth=0.5, rest=0.125, views=1)
    monkeypatch.setattr(report, "depth_share", lambda run: slow)
    kept = report.preflight(build(recipe_for()))
    assert "estimated once, not" in kept.plan["depth"]
    assert "80% of every step" in kept.plan["depth"]
    assert "depth_cache, at most" in kept.plan["depth"]
    assert not [text for text in kept.warnings if "ZoeDepth" in text]
    always = report.preflight(build(recipe_for(depth=NEVER)))
    (warning,) = [text for text in always.warnings if "ZoeDepth" in text]
    assert warning.startswith("80% of the time of a step is ZoeDepth (500 ms a picture)")
    assert "'data.depth={source: estimate, cache: DIR}' estimates each picture once" in warning
    few = report.preflight(build(recipe_for("train.steps=2")))
    (warning,) = [text for text in few.warnings if "ZoeDepth" in text]
    assert "data.depth=sensor saves it" in warning


def test_the_share_is_measured(recipe_for, monkeypatch):
    run = build(recipe_for())
    clock = iter(range(1000))
    monkeypatch.setattr(step_cost.time, "perf_counter", lambda: next(clock))
    cost = step_cost.depth_share(run)  # every round takes one tick, of two samples
    assert (cost.depth, cost.rest, cost.views) == (0.5, 1.5, 1)
    assert cost.share == 0.25


def test_bf16_on_a_processor_is_measured_and_told(recipe_for, monkeypatch):
    seen, linear, before = [], step_cost.F.linear, torch.get_num_threads()
    watched = lambda *a: seen.append(torch.get_num_threads()) or linear(*a)  # noqa: E731
    monkeypatch.setattr(step_cost.F, "linear", watched)
    torch.set_num_threads(2)
    try:
        assert step_cost.bf16_beside_float32.__wrapped__(32) > 0
        assert set(seen) == {1}  # threads that wait for each other say nothing of a product
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(report, "depth_share", lambda run: None)
    monkeypatch.setattr(report, "bf16_beside_float32", lambda width: 2.5)
    found = report.preflight(build(recipe_for("train.precision=bf16")))
    assert "2.5 times as long as float32" in found.plan["precision"]
    assert [text for text in found.warnings if "set train.precision=float32" in text]
    monkeypatch.setattr(report, "bf16_beside_float32", lambda width: 0.4)
    found = report.preflight(build(recipe_for("train.precision=bf16")))
    assert not [text for text in found.warnings if "bf16" in text]


def test_no_more_workers_than_cores(monkeypatch):
    monkeypatch.setattr(step_cost.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(step_cost, "trains_on_cpu", lambda: False)
    assert [step_cost.workers_here(n) for n in (0, 1, 2, 4)] == [0, 1, 2, 2]
    monkeypatch.setattr(step_cost, "trains_on_cpu", lambda: True)
    assert [step_cost.workers_here(n) for n in (0, 1, 4)] == [0, 1, 1]
