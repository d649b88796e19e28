"""A mixture in a recipe: drawn by its weights, stopped by what is missing."""

from __future__ import annotations

import shutil

import pytest
import yaml

from spatialvla_ft.training.build import build
from spatialvla_ft.training.recipe import RecipeError, load_recipe


@pytest.fixture
def mixed(recipe_of, demo_data, tmp_path):
    """A recipe on a mixture of two copies of the demo dataset, one of them missing a friend."""
    root = tmp_path / "root"
    for name in ("demo", "other"):
        without = shutil.ignore_patterns("frame_index")
        shutil.copytree(demo_data, root / name / "1.0.0", ignore=without)
    info = root / "other/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"name": "demo"', '"name": "other"'))
    for shard in (root / "other/1.0.0").glob("demo-*"):
        shard.rename(shard.with_name(shard.name.replace("demo-", "other-")))
    card = root / "other/1.0.0/card.yaml"
    card.write_text(card.read_text().replace("demo:", "other:"))
    file = tmp_path / "mixtures.yaml"
    entries = {"demo/1.0.0": 1.0, "other/1.0.0": {"weight": 3.0, "episodes": 2}, "gone/1.0.0": 9.0}
    file.write_text(yaml.safe_dump({"schema_version": 1, "mixtures": {"both": entries}}))

    def make(*overrides):
        recipe_of("full")
        written = tmp_path / "out.yaml"
        content = yaml.safe_load(written.read_text())
        del content["data"]["datasets"]
        content["data"]["mixture"] = {"name": "both", "file": str(file), "root": str(root)}
        written.write_text(yaml.safe_dump(content))
        return load_recipe(written, overrides)

    return make


def test_a_mixture_is_drawn_by_its_balanced_weights(mixed):
    with pytest.raises(ValueError, match=r"1 of 3 datasets cannot be used:\n- gone/1.0.0"):
        build(mixed())
    run = build(mixed("data.mixture.excuse=[gone]"))
    assert [dataset.name for dataset in run.datasets] == ["demo/1.0.0", "other/1.0.0"]
    assert run.weights == pytest.approx([0.25, 0.75])  # as many steps in each
    assert len(run.datasets[1].episodes) == 2
    assert set(run.processor.statistics) == {"demo/1.0.0", "other/1.0.0"}
    plain = build(mixed("data.mixture.excuse=[gone]", "data.mixture.balance_weights=false"))
    assert plain.weights == pytest.approx([0.25, 0.75])


def test_one_of_datasets_and_mixture(mixed):
    with pytest.raises(RecipeError, match="set exactly one of data"):
        mixed("data.datasets=[{path: a/1.0.0}]")
    with pytest.raises(RecipeError, match=r"unknown key data\.mixture\.rot, did you mean root"):
        mixed("data.mixture.rot=x")
