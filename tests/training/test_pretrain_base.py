"""`init-base` as a user runs it, then training from what it wrote."""

from __future__ import annotations

import json

import pytest
import tiny_paligemma
import torch
import yaml
from released_keys import check_released
from safetensors.torch import load_file
from tiny_world import BINS
from typer.testing import CliRunner

from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.grid_io import load_grid, save_grid
from spatialvla_ft.cli.main import app
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import load_recipe

TEXT_ROWS = "language_model.model.embed_tokens.weight"
FITS = {
    axis: {"mu": mu, "sigma": 0.4}
    for axis, mu in zip(
        ("x", "y", "z", "theta", "phi", "r", "roll", "pitch", "yaw"),
        (0, 0, 0, 1.8, 0.1, 0.5, 0, 0, 0),
        strict=True,
    )
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    tiny_paligemma.write_paligemma(folder / "paligemma")
    tiny_paligemma.write_zoedepth(folder / "zoedepth")
    save_grid(ActionGrid.uniform(bins=BINS), folder / "grid.json")
    return folder


def call(sources, *arguments):
    given = ["--paligemma", sources / "paligemma", "--zoedepth", sources / "zoedepth"]
    return CliRunner().invoke(app, ["init-base", *map(str, [*given, *arguments])])


@pytest.fixture(scope="module")
def written(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("bases") / "new"
    options = ["--output", out, "--action-chunk-size", 2, "--dtype", "float32"]
    result = call(sources, "--grid", sources / "grid.json", *options)
    assert result.exit_code == 0, result.output
    assert "1,461 text tokens, then 134 action tokens (1461..1594)" in result.stdout
    assert "224 x 224 pixels, 256 image tokens; chunks of 2 actions" in result.stdout
    check_released(out)
    return out


def test_json_and_a_grid_of_fits(sources, tmp_path):
    fits = tmp_path / "fits.yaml"
    fits.write_text(yaml.safe_dump({"gaussians": {"mine": FITS, "other": FITS}}))
    out = tmp_path / "base"
    refused = call(sources, "--gaussians", fits, "--output", out)
    assert refused.exit_code == 1
    assert "holds several fits; name one of ['mine', 'other'] (--gaussians-of)" in refused.output
    options = ["--gaussians-of", "mine", "--min-sigma", 0.5, "--output", out, "--json"]
    result = call(sources, "--gaussians", fits, *options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert load_grid(out) == ActionGrid.from_gaussians(FITS, min_sigma=0.5)
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert report["parameters"] == sum(tensor.numel() for tensor in weights.values())
    kept = [n for n in weights if n == TEXT_ROWS or n.startswith("vision_zoe_model.")]
    assert report["parameters"] - report["trained"] == sum(weights[n].numel() for n in kept)
    assert report["action_tokens"] == 8194
    assert {p.stat().st_mode & 0o777 for p in out.iterdir()} == {
        (out / "config.json").stat().st_mode & 0o777
    }
    again = call(sources, "--gaussians", fits, *options)
    assert again.exit_code == 1
    assert "--output" in again.output
    assert "is not empty" in again.output
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_two_grids_or_none_are_refused(sources, tmp_path):
    for options in ([], ["--grid", "g.json", "--gaussians", "f.yaml"]):
        refused = call(sources, *options, "--output", tmp_path / "base")
        assert refused.exit_code == 1
        assert "give exactly one of --grid" in refused.output


@pytest.mark.parametrize("freeze", [None, []])
def test_training_from_a_base_keeps_its_text_embeddings(written, demo_data, tmp_path, freeze):
    content = {
        "output": str(tmp_path / "run"),
        "model": {"base": str(written)},
        "data": {"datasets": [{"path": str(demo_data)}], "depth": "sensor", "workers": 0},
        "grid": {"fit": "uniform"},
        "train": {
            "steps": 2,
            "batch_size": 1,
            "learning_rate": 0.01,
            "schedule": "constant",
            "warmup": 0,
            "save_every": 2,
            "trackers": ["jsonl"],
        },
    }
    if freeze is not None:
        content["train"]["freeze"] = freeze
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    train(build(load_recipe(tmp_path / "recipe.yaml")))
    before = load_file(written / "model.safetensors")
    after = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert set(after) == set(before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert (TEXT_ROWS in moved) is (freeze == [])
    assert not [name for name in moved if name.startswith("vision_zoe_model.")]
    for name in ("language_model.lm_head.weight", "spatial_embed_tokens.weight"):
        assert name in moved
    head = "position_embedding_3d.position_embedding_head"
    assert {f"{head}.{layer}.weight" for layer in (0, 1, 3)} <= moved
