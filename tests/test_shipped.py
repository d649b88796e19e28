"""Recipes that come with the toolkit: what a name means, and what is said where it is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.shipped import find_recipe, no_recipe, shipped_recipes
from spatialvla_ft.training.recipe import RecipeError, load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_of_that_path_wins_over_the_name(place):
    assert find_recipe("adapt_lora").samefile(RECIPES / "adapt_lora.yaml")
    assert find_recipe("toy/adapt_lora").samefile(RECIPES / "toy/adapt_lora.yaml")
    assert load_recipe("toy/adapt_lora") == load_recipe(RECIPES / "toy/adapt_lora.yaml")
    (place / "adapt_lora").mkdir()  # as an output might be called
    assert find_recipe("adapt_lora").samefile(RECIPES / "adapt_lora.yaml")
    (place / "adapt_lora").rmdir()
    (place / "adapt_lora").write_text("output: mine\n")
    assert find_recipe("adapt_lora").samefile(place / "adapt_lora")


@pytest.mark.parametrize("given", ["toy/_size", "launch/one_node", "../recipes/debug", "", "."])
def test_what_is_no_name(place, given):
    assert find_recipe(given) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "adapt_lroa",
            r"adapt_lroa does not exist, and no recipe .*mean adapt_lora\?\)",
        ),
        ("adapt_lora.yaml", r"\(did you mean adapt_lora\?\)"),
        ("recipes/adapt_lora.yaml", r"\(there is no folder recipes\).*mean adapt_lora\?\)"),
        ("toy/qlor", r"mean toy/qlora\?\)"),
        ("mine.yam", r"\(did you mean mine.yaml\?\), and no recipe of that name comes with"),
        ("runs", r"runs is a folder, and no recipe of that name comes with the toolkit; "),
    ],
)
def test_a_name_that_means_nothing(place, given, words):
    (place / "mine.yaml").touch()
    (place / "runs").mkdir()
    with pytest.raises(RecipeError, match=words) as raised:
        load_recipe(given)
    assert "adapt_full, adapt_l1, adapt_lora, adapt_lora_spatial, " in str(raised.value)
    assert str(raised.value) == no_recipe(given)


def test_a_recipe_of_ones_own_builds_on_a_shipped_one(place):
    (place / "adapt_lora.yaml").write_text("extends: adapt_lora\ntrain: {steps: 7}\n")
    recipe = load_recipe("adapt_lora.yaml")
    assert (recipe.train.steps, recipe.lora.rank) == (7, 32)
    (place / "own").mkdir()
    (place / "own/debug").write_text((place / "adapt_lora.yaml").read_text())
    (place / "own/mine.yaml").write_text("extends: [debug, toy/_sise]\n")
    with pytest.raises(RecipeError, match=r"^own/mine.yaml:1: extends toy/_sise, but own/toy"):
        load_recipe("own/mine.yaml")
    (place / "own/mine.yaml").write_text("extends: debug\n")
    assert load_recipe("own/mine.yaml").lora.rank == 32  # the file beside it


def test_the_list_and_one_of_it():
    rows = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)
    assert {row["name"]: Path(row["file"]) for row in rows} == shipped_recipes()
    assert {"debug", "qlora", "toy/qlora"} < {row["name"] for row in rows}
    about = {row["name"]: row["about"] for row in rows}
    assert all(len(words) > 20 and "#" not in words for words in about.values())
    assert about["adapt_full"] == (
        "Adapt all weights but ZoeDepth and the text embeddings to a new robot"
    )
    listed = CliRunner().invoke(app, ["recipes"]).stdout
    assert all(name.removeprefix("toy/") in listed for name in about)
    assert str(RECIPES) in listed
    one = CliRunner().invoke(app, ["recipes", "toy/qlora"])
    assert one.stdout == (RECIPES / "toy/qlora.yaml").read_text()
