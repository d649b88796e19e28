"""What an earlier version left on disk: a run goes on, an export acts, nothing is built again.

The archive was made by the commit in its name, before the modules of the package moved.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data import open_dataset
from spatialvla_ft.data.stats.fits import MixtureActions
from spatialvla_ft.data.stats.statistics import dataset_statistics
from spatialvla_ft.depth.load import DeferredEstimator
from spatialvla_ft.export.stored import verify_export
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.quickstart.stages import Stage, StageRunner
from spatialvla_ft.training import checkpoints
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import load_recipe

ARCHIVE = Path(__file__).parent / "511afa3.tar.xz"
LOSS, WEIGHT = 1e-4, 1e-5
"""Other kernels (AVX2, SSE4.1, two threads) moved losses by 5e-7 and weights by 6e-8, the last bit
of a float32; an optimiser that forgets its moments moves them by 0.045 and 4.6e-3."""
MODULE = re.compile(r"spatialvla_ft(?:\.\w+)+")
DATASETS = {"rlds": "datasets/made/1.0.0", "lerobot": "datasets/made_lerobot"}


@pytest.fixture
def left(tmp_path, monkeypatch):
    """The folder as a copy that keeps times of writing, which is the working directory now."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def expected(left):
    return json.loads((left / "expected.json").read_text())


def state_of(*folders):
    """{file: (its number on the disk, time of writing, size)}; a file written anew differs."""
    files = [file for folder in folders for file in Path(folder).rglob("*") if file.is_file()]
    found = {file: file.stat() for file in files}
    return {file: (s.st_ino, s.st_mtime_ns, s.st_size) for file, s in found.items()}


def metrics(name):
    lines = map(json.loads, Path("half/metrics.jsonl").read_text().splitlines())
    return {str(line["step"]): line[name] for line in lines if name in line}


def test_a_run_that_was_cut_goes_on_to_the_same_end(expected, monkeypatch, caplog):
    before = state_of("datasets", "depth", "base")
    run = build(load_recipe(Path("half.yaml")))
    assert run.depth_plan.cached
    monkeypatch.setattr(DeferredEstimator, "__call__", None)  # all depth is there already
    with caplog.at_level(logging.INFO):
        train(run)
    assert "resuming from half/checkpoints/step-00000004" in caplog.text
    for name in ("loss", "validation/loss"):
        assert metrics(name) == pytest.approx(expected["half"][name], abs=LOSS), name
    newest, damaged = checkpoints.newest(Path("half/checkpoints"))
    assert (newest.name, damaged) == ("step-00000008", [])
    ours, theirs = checkpoints.load(newest)[0].trainable, load_file("reached.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=WEIGHT)
    assert state_of("datasets", "depth", "base") == before


@pytest.mark.usefixtures("left")
def test_an_export_acts_as_it_did():
    report = verify_export("adapted/export")
    assert report.same
    assert report.max_logit_difference < 1e-3  # stored.py: other machines move it by 1e-4


@pytest.mark.parametrize("checkpoint", ["adapted/export", "adapted/train/final"])
def test_a_policy_is_loaded_from_anywhere(left, checkpoint, tmp_path_factory, monkeypatch):
    """The canary sees to it that it acts; an adapter's base is found by the way there alone."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    place = left / "adapted/train/final/base.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "base": "/moved/since/base"}))
    load_policy_model(left / checkpoint)


@pytest.mark.parametrize("kind", ["rlds", "lerobot"])
def test_a_dataset_opens_without_building_anything(expected, kind):
    before = state_of("datasets")
    dataset = open_dataset(DATASETS[kind], card=None, horizon=2)
    sample, statistics = dataset[9], dataset_statistics(dataset)
    assert {
        "frames": len(dataset),
        "episodes": dataset.store.episode_lengths.tolist(),
        "content": dataset.store.content_hash,
        "picture": int(sample.images["primary"].astype(int).sum()),
        "actions": sample.actions.tolist(),
        "instruction": sample.instruction,
        "mean": statistics.mean.tolist(),
    } == expected[kind]
    MixtureActions([dataset], {dataset.name: statistics}, [1.0]).gaussians()
    assert state_of("datasets") == before


def test_an_adaptation_is_still_done(expected):
    before = state_of("datasets", "base", "adapted")
    done = CliRunner().invoke(app, expected["adaptation"])
    assert done.exit_code == 0, done.output
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    assert {name: stage["why"] for name, stage in stages.items()} == dict.fromkeys(
        ["index", "inspect", "statistics", "grid", "plan", "train", "evaluate", "export"]
    )
    after = state_of("datasets", "base", "adapted")
    assert {file for file in after if after[file] != before.get(file)} == {
        Path("adapted/summary.json")
    }


def test_stages_of_a_quickstart_are_not_repeated(left, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    rows = json.loads((left / "quickstart/timings.json").read_text())
    runner = StageRunner(left / "quickstart")
    runner.run([Stage(row["stage"], "", tuple(row["command"].split()[1:])) for row in rows])
    assert runner.timings == rows


def test_modules_that_files_name_are_there(left):
    """peft writes down which class an adapter is for, to be found by AutoPeftModel."""
    texts = [file.read_text() for ending in ("json", "yaml") for file in left.rglob(f"*.{ending}")]
    named = {name for text in texts for name in MODULE.findall(text)}
    assert named == {"spatialvla_ft.models.modeling_spatialvla"}
    for name in named:
        assert hasattr(importlib.import_module(name), "SpatialVLAForConditionalGeneration")
