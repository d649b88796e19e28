"""A mixture in a recipe: drawn by its weights, stopped by what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from spatialvla_ft.data.stats.fits import MixtureActions
from spatialvla_ft.data.stats.statistics import dataset_statistics
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


def test_the_grid_can_be_fitted_without_some_datasets(mixed):
    """By name or by a list of the mixture's file; they are trained on all the same."""
    excused = "data.mixture.excuse=[gone]"
    without = build(mixed(excused, "grid.fit=gaussian", "grid.exclude=[other]"))
    assert [dataset.name for dataset in without.datasets] == ["demo/1.0.0", "other/1.0.0"]
    assert without.weights == pytest.approx([0.25, 0.75])
    file = Path(mixed(excused).data.mixture.file)
    lists = {"exclude_lists": {"strange": ["other/1.0.0", "never_heard_of", "gone/1.0.0"]}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | lists))
    by_list = build(mixed(excused, "grid.fit=gaussian", "grid.exclude=[strange]"))
    everything = build(mixed(excused, "grid.fit=gaussian"))
    statistics = dataset_statistics(without.datasets[0])
    alone = MixtureActions(without.datasets[:1], {"demo/1.0.0": statistics}, [1.0])
    wanted = alone.grid("gaussian", bins=without.processor.grid.bins)
    for axis, edges in wanted.edges.items():
        np.testing.assert_array_equal(without.processor.grid.edges[axis], edges)
        np.testing.assert_array_equal(by_list.processor.grid.edges[axis], edges)
    assert any(
        not np.array_equal(everything.processor.grid.edges[axis], edges)
        for axis, edges in wanted.edges.items()
    )
    with pytest.raises(ValueError, match=r"cannot exclude 'othr'.*did you mean other"):
        build(mixed(excused, "grid.fit=gaussian", "grid.exclude=[othr]"))
    with pytest.raises(ValueError, match="leaves no dataset to fit to"):
        build(mixed(excused, "grid.fit=gaussian", "grid.exclude=[other, demo]"))
    with pytest.raises(RecipeError, match=r"grid\.exclude leaves datasets out of a fit"):
        mixed("grid.fit=null", "grid.exclude=[other]")
