"""Estimated depth in training: on the recorded picture, cached, cropped along with it."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import NAME, MadeUp
from typer.testing import CliRunner

from spatialvla_ft.data.augment import Augment
from spatialvla_ft.data.pictures import fit_step
from spatialvla_ft.data.sample import Observation
from spatialvla_ft.depth.cache import RELATIVE_ERROR, DepthCache, from_bytes
from spatialvla_ft.depth.load import DeferredEstimator, DepthSpec, load_depth_estimator
from spatialvla_ft.policy.depth import SampleDepth
from spatialvla_ft.training.batches import Frames
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import RecipeError

sys.path.insert(0, str(Path(__file__).parents[1] / "depth"))
import depth_zoo


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return depth_zoo.write("depth_anything", tmp_path_factory.mktemp("anything"))


@pytest.fixture
def spec(checkpoint):
    return DepthSpec(str(checkpoint), resolution=70)


@pytest.fixture
def filler(spec, tmp_path):
    return SampleDepth(DeferredEstimator(spec), DepthCache(tmp_path / "cache"), ["primary"])


def test_a_sample_gets_the_estimator_s_depth_of_its_recorded_picture(filler, spec):
    samples = MadeUp(5)
    filled = filler.fill(samples, range(5), batch_size=2)
    assert (filled.pictures, filled.found, filled.estimated) == (5, 0, 5)
    again = filler.fill(samples, range(5))
    assert (again.found, again.estimated) == (5, 0)
    estimator = load_depth_estimator(spec)
    for sample in samples:
        got = filler(sample).depth["primary"]
        wanted = estimator(from_bytes(sample.images["primary"][None]))[0].numpy()
        np.testing.assert_allclose(got, wanted, rtol=RELATIVE_ERROR + 1e-4)
        assert got.dtype == np.float32


def test_a_crop_cuts_estimated_depth_with_its_picture(filler):
    """Depth is of the whole picture: the crop of it must be found inside it, where K says."""
    sample = MadeUp(1)[0]
    whole = filler(sample)
    crop = Augment(0.5, 0, 0, 0, 0)(whole, slot=11, seed=3, size=32)
    K, moved = sample.intrinsics["primary"], crop.intrinsics["primary"]
    corner = -moved[:2, 2] / moved[[0, 1], [0, 1]] * K[[0, 1], [0, 1]] + K[:2, 2]
    left, top = np.round(corner).astype(int)
    assert (left, top) != (0, 0)
    side = np.round(32 * K[[0, 1], [0, 1]] / moved[[0, 1], [0, 1]]).astype(int)
    inside = (slice(top, top + side[1]), slice(left, left + side[0]))
    cut = Observation(
        images={"primary": sample.images["primary"][inside]},
        depth={"primary": whole.depth["primary"][inside]},
    )
    expected = fit_step(cut, 32, "fast")
    np.testing.assert_array_equal(crop.images["primary"], expected.images["primary"])
    np.testing.assert_array_equal(crop.depth["primary"], expected.depth["primary"])


def test_what_the_cache_lacks_is_estimated_and_said(filler, caplog):
    with caplog.at_level(logging.WARNING):
        first = filler(MadeUp(1)[0]).depth["primary"]
    assert f"{NAME}, episode 0, step 0, camera primary: no depth in" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(filler(MadeUp(1)[0]).depth["primary"], first)
    assert not caplog.text


def test_a_worker_gets_the_cache_but_not_the_network(filler):
    filler.fill(MadeUp(2), range(2))
    packed = pickle.dumps(filler)
    assert len(packed) < 4000
    worker = pickle.loads(packed)
    assert worker.estimator._network is None
    np.testing.assert_array_equal(
        worker(MadeUp(2)[1]).depth["primary"], filler(MadeUp(2)[1]).depth["primary"]
    )
    assert worker.estimator._network is None  # it only read
    other = dataclasses.replace(
        MadeUp(1)[0], images={"primary": 255 - MadeUp(1)[0].images["primary"]}
    )
    np.testing.assert_array_equal(worker(other).depth["primary"], filler(other).depth["primary"])
    assert worker.estimator._network is not None


def test_a_released_estimator_is_loaded_again(spec):
    deferred = DeferredEstimator(spec)
    pixels = torch.rand(1, 3, 40, 56)
    before = deferred(pixels)
    deferred.release()
    assert deferred._network is None
    assert torch.equal(deferred(pixels), before)


def estimated(recipe_of, checkpoint, tmp_path, kind="full", *more):
    depth = f"{{source: estimator, checkpoint: {checkpoint}, cache: {tmp_path}/c, resolution: 70}}"
    return recipe_of(kind, overrides=[f"data.depth={depth}", *more])


def test_training_on_estimated_depth(recipe_of, checkpoint, tmp_path, monkeypatch):
    recipe = estimated(recipe_of, checkpoint, tmp_path, "full", "train.steps=2", "data.workers=1")
    run = build(recipe)
    train(run)
    frames = sum(len(d) for d in [*run.datasets, *run.heldout])
    assert 0 < DepthCache(tmp_path / "c").size().entries <= frames
    assert run.depth.estimator._network is None
    # From here on no network runs: every frame, validation's too, comes from the cache.
    monkeypatch.setattr(DeferredEstimator, "__call__", None)
    sample = Frames(run)[0, 1, 5]
    assert run.datasets[0][1].depth is None  # a sensor's depth is not even decoded
    assert sample.depth["primary"].shape == (32, 32)
    batch = run.collate([run.sample(run.heldout[0], 0)])
    assert batch["depth"].shape == (1, 32, 32)
    assert bool((batch["depth"] > 0).all())


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ("{source: estimator}", "needs checkpoint and cache"),
        ("{source: estimator, cache: c}", "needs checkpoint, e.g."),
        ("{source: sensor, cache: c}", "cache of data.depth belong to source: estimat"),
        (
            "{source: estimate, resolution: 64}",
            "resolution of .* belong to source: estimator",
        ),
        ("{source: estimator, checkpoint: x, cache: never}", "give cache: DIR"),
        ("sensr", r"data.depth.source: .*\(got 'sensr'\)"),
        ("{source: estimator, chekpoint: x, cache: c}", "did you mean checkpoint"),
    ],
)
def test_recipes_say_what_is_wrong_with_depth(recipe_of, depth, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of("full", overrides=[f"data.depth={depth}"])


@pytest.mark.parametrize("word", ["sensor", "estimate"])
def test_words_stay_words(recipe_of, word):
    recipe = recipe_of("full", overrides=[f"data.depth={word}"])
    assert recipe.data.depth.source == word
    assert recipe.model_dump(mode="json")["data"]["depth"] == word


def test_a_section_comes_back_as_written(recipe_of, checkpoint, tmp_path):
    recipe = estimated(recipe_of, checkpoint, tmp_path)
    dumped = recipe.model_dump(mode="json")
    assert type(recipe).model_validate(dumped) == recipe
    assert dumped["data"]["depth"]["resolution"] == 70


def test_the_command_fills_a_cache_and_continues(demo_data, checkpoint, tmp_path):
    import json

    from spatialvla_ft.cli.main import app

    arguments = ["data", "depth", str(demo_data), "--estimator", str(checkpoint)]
    arguments += ["--cache", str(tmp_path / "c"), "--resolution", "70", "--device", "cpu"]
    primary = CliRunner().invoke(app, [*arguments, "--camera", "primary", "--json"])
    assert primary.exit_code == 0, primary.output
    first = json.loads(primary.stdout)
    assert first["estimated"] == first["pictures"] == first["frames"] > 0
    both = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert both["pictures"] == 2 * first["frames"]
    assert both["found"] == first["frames"]
    assert both["cache_entries"] == both["pictures"]
    said = CliRunner().invoke(app, arguments)
    assert "0 estimated" in said.stdout
    wrong = CliRunner().invoke(app, [*arguments, "--camera", "left"])
    assert wrong.exit_code == 1
    assert "--camera ['left'] is not one of" in wrong.stderr
    none = CliRunner().invoke(app, [*arguments[:4], "nowhere", *arguments[5:]])
    assert none.exit_code == 1
    assert "nowhere is no folder" in none.stderr
    assert "Example: spatialvla-ft data depth" in CliRunner().invoke(
        app, ["data", "depth", "--help"]
    ).stdout.replace("\n", " ").replace("  ", " ")
