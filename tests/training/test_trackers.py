"""Trackers by name: refused while a recipe is read, continued as the same run, without secrets."""

from __future__ import annotations

import importlib.util
import json

import pytest

from spatialvla_ft.training import tracker_names
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import RecipeError
from spatialvla_ft.training.tracker_names import check_trackers, init_arguments, without_secrets

OTHERS = ("wandb", "trackio")


def installed(name):
    return importlib.util.find_spec(name) is not None


def needs(name):
    return pytest.mark.skipif(not installed(name), reason=f"{name} is not installed")


def test_an_unknown_tracker_is_refused_when_the_recipe_is_read(recipe_of):
    with pytest.raises(RecipeError, match=r"(?s)wandbb.*there are jsonl, tensorboard, wandb"):
        recipe_of("full", overrides=["train.trackers=[jsonl, wandbb]"])


@pytest.mark.parametrize("name", OTHERS)
def test_a_tracker_that_is_not_installed_names_the_cure(recipe_of, monkeypatch, name):
    monkeypatch.setattr(tracker_names.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(RecipeError, match=rf"pip install 'spatialvla-ft\[{name}\]'"):
        recipe_of("full", overrides=[f"train.trackers=[{name}]"])


def test_a_tracker_named_twice_is_refused():
    with pytest.raises(ValueError, match="named twice"):
        check_trackers(["jsonl", "tensorboard", "jsonl"])
    assert check_trackers([]) == []


def test_a_continued_run_keeps_its_name_and_another_gets_another(tmp_path):
    first = init_arguments(["jsonl", "wandb", "trackio"], tmp_path / "My run: 1")
    again = init_arguments(["wandb"], tmp_path / "My run: 1")
    assert first["wandb"] == again["wandb"]
    assert first["wandb"]["id"] == first["trackio"]["name"]
    assert first["wandb"]["id"].startswith("My-run-1-")
    assert first["wandb"]["resume"] == "allow"
    other = init_arguments(["wandb"], tmp_path / "another")
    assert other["wandb"]["id"] != first["wandb"]["id"]
    assert init_arguments(["jsonl", "tensorboard"], tmp_path / "none") == {}
    assert not (tmp_path / "none").exists()


def test_addresses_go_out_without_secrets():
    content = {
        "path": "https://ann:pass@host/data/1.0.0?token=abc",
        "list": [{"path": "s3://bucket/data"}, "plain text: no address"],
        "number": 3,
    }
    assert without_secrets(content) == {
        "path": "https://host/data/1.0.0",
        "list": [{"path": "s3://bucket/data"}, "plain text: no address"],
        "number": 3,
    }


@needs("wandb")
def test_wandb_writes_offline_and_goes_on_as_the_same_run(recipe_of, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = recipe_of("full", overrides=["train.trackers=[jsonl, wandb]"])

    class CutError(Exception):
        pass

    def cut(step, values):
        if step == 3:
            raise CutError

    with pytest.raises(CutError):
        train(build(recipe), on_log=cut)
    import wandb

    wandb.finish()
    train(build(recipe))
    run = json.loads((recipe.output / "trackers.json").read_text())["run"]
    folders = [p.name for p in (recipe.output / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert all(name.endswith(run) for name in folders)
    assert all(list((recipe.output / "wandb" / name).glob("*.wandb")) for name in folders)


@needs("trackio")
def test_trackio_keeps_metrics_on_disk(recipe_of, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    recipe = recipe_of("full", overrides=["train.trackers=[trackio]", "train.steps=2"])
    train(build(recipe))
    assert list((tmp_path / "trackio").glob("*.db"))
