"""Recipes: every mistake at once, each with its line and its cure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spatialvla_ft.checked_yaml import MEANT
from spatialvla_ft.training import recipe as sections
from spatialvla_ft.training.recipe import Recipe, RecipeError, load_recipe

GOOD = """\
output: runs/x
model:
  base: some/checkpoint
data:
  datasets:
    - path: a/1.0.0
    - path: b/1.0.0
      weight: 2
train:
  steps: 10
  batch_size: 2
  learning_rate: 1.0e-3
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return file

    return make


def test_defaults(write):
    recipe = load_recipe(write(GOOD))
    assert recipe.data.datasets[1].weight == 2
    assert recipe.lora is None
    assert recipe.grid.fit is None
    assert recipe.train.schedule == "cosine"


def test_overrides_reach_sections_lists_and_absent_sections(write):
    overrides = [
        "data.datasets.1.path=c/2.0.0",
        "lora.rank=8",
        "train.learning_rate=3e-4",
        "train.betas=[0.8, 0.9]",
        "data.holdout=0",
    ]
    recipe = load_recipe(write(GOOD), overrides)
    assert [d.path for d in recipe.data.datasets] == [Path("a/1.0.0"), Path("c/2.0.0")]
    assert recipe.lora.rank == 8
    assert recipe.train.learning_rate == 3e-4
    assert recipe.train.betas == (0.8, 0.9)
    assert recipe.data.holdout == 0


def test_all_mistakes_at_once_with_file_and_line(write):
    text = GOOD.replace("steps: 10", "steps: many").replace("weight: 2", "wieght: 2")
    file = write(text + "lora:\n  rnak: 8\n")
    with pytest.raises(RecipeError) as raised:
        load_recipe(file, ["train.batch_sise=4", "data.holdout=1.5"])
    lines = str(raised.value).splitlines()
    wanted = [
        (f"{file}:8: unknown key data.datasets.1.wieght", "did you mean weight?"),
        (f"{file}:10: train.steps: ", "(got 'many')"),
        (f"{file}:14: unknown key lora.rnak", "did you mean rank?"),
        ("override 'train.batch_sise=4'", "did you mean batch_size?"),
        ("override 'data.holdout=1.5'", "(got 1.5)"),
    ]
    assert len(lines) == len(wanted)
    for start, end in wanted:
        assert [line for line in lines if start in line and line.endswith(end)], (start, lines)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("train.checkpoint_every=5", "did you mean save_every?"),
        ("train.lr=1", "did you mean learning_rate?"),
        ("train.eval_steps=5", "did you mean validate_every?"),
        ("lora.r=8", "did you mean rank?"),
        ("output_dir=x", "did you mean output?"),
    ],
)
def test_keys_as_other_programs_call_them(write, given, wanted):
    with pytest.raises(RecipeError) as raised:
        load_recipe(write(GOOD), [given])
    assert str(raised.value).endswith(wanted)


def test_what_is_meant_by_other_names_is_there():
    fields = {
        name
        for section in vars(sections).values()
        if isinstance(section, type) and issubclass(section, sections.Section)
        for name in section.model_fields
    } | set(Recipe.model_fields)
    assert {name for meant in MEANT.values() for name in meant} <= fields
    assert not fields & (set(MEANT) - {"checkpoint", "r"})


def test_a_recipe_that_is_not_there_is_looked_for(write):
    file = write(GOOD)
    with pytest.raises(RecipeError, match=r"recip.yaml does not exist.*did you mean .*recipe.yaml"):
        load_recipe(file.with_name("recip.yaml"))


def test_a_missing_key_is_named(write):
    with pytest.raises(RecipeError, match=r"recipe.yaml:9: train.steps is missing"):
        load_recipe(write(GOOD.replace("  steps: 10\n", "")))


def test_a_far_off_key_lists_what_there_is(write):
    with pytest.raises(RecipeError, match=r"unknown key zzz; known are data, grid, lora, model"):
        load_recipe(write(GOOD + "zzz: 1\n"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.new.image_size=64"], "set exactly one of model.base"),
        (["grid.fit=gaussian", "grid.file=g.json"], "set at most one of grid.fit and grid.file"),
        (["model={new: {}}", "lora.rank=4"], "lora needs model.base"),
        (["train.steps"], "not of the form key.sub=value"),
        (["=3"], "not of the form key.sub=value"),
        (["data.datasets.2.path=x"], r"'2' is not one of 0\.\.1"),
        (["data.datasets.first=x"], r"'first' is not one of 0\.\.1"),
        (["output.folder=x"], "output is a value, not a section"),
        (["data.datasets=[]"], "data.datasets"),
    ],
)
def test_contradictions_and_overrides_that_go_nowhere(write, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(GOOD), overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "is not valid YAML"),
        ("- 1\n", "must hold a mapping"),
        ("", "must hold a mapping"),
    ],
)
def test_files_that_are_no_recipe(write, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"no\.yaml does not exist, and no recipe of that name"):
        load_recipe(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.name
)
def test_shipped_recipes_are_valid(file):
    load_recipe(file)
    header = file.read_text().split("\noutput:")[0]
    assert re.search(rf" train {file.stem}\s", header)


@pytest.mark.parametrize(
    ("there", "given", "fit", "file"),
    [
        ("{fit: gaussian, min_sigma: 0.5, zero_bin: true}", ["grid.file=g.json"], None, "g.json"),
        ("{fit: gaussian}", ["grid.fit=null", "grid.file=g.json"], None, "g.json"),
        ("{file: a.json}", ["grid.fit=quantile", "grid.bins=4,4,4,4,4,4,2"], "quantile", None),
        ("{fit: uniform, bins: [4, 4, 4, 4, 4, 4, 2]}", ["grid.file=g.json"], None, "g.json"),
        ("{file: a.json}", ["grid.file=null"], None, None),
        ("{fit: gaussian}", ["grid.min_sigma=0.1"], "gaussian", None),
    ],
)
def test_a_file_given_alone_takes_the_place_of_a_fit(write, there, given, fit, file):
    recipe = load_recipe(write(f"{GOOD}grid: {there}\n"), given)
    assert recipe.grid.fit == fit
    assert recipe.grid.file == (None if file is None else Path(file))


def test_in_recipes_that_extend_others_too(write, tmp_path):
    write(f"{GOOD}grid: {{fit: gaussian, min_sigma: 0.5}}\n")
    own = tmp_path / "own.yaml"
    own.write_text("extends: recipe.yaml\ngrid: {file: g.json}\n")
    assert load_recipe(own).grid.file == Path("g.json")
    own.write_text("extends: recipe.yaml\ngrid: {file: g.json, fit: gaussian}\n")
    with pytest.raises(RecipeError, match="at most one of grid"):
        load_recipe(own)


def test_bins_are_of_a_fit(write):
    text = f"{GOOD}grid: {{fit: gaussian}}\n"
    recipe = load_recipe(write(text), ["grid.bins=16,32,8,1,1,16,2"])
    assert recipe.grid.bins == (16, 32, 8, 1, 1, 16, 2)
    with pytest.raises(RecipeError, match=r"grid.bins.*unable to parse|valid integer"):
        load_recipe(write(text), ["grid.bins=16,many"])
    with pytest.raises(RecipeError, match="bins is of a grid that is fitted"):
        load_recipe(write(GOOD), ["grid.bins=16,32,8,1,1,16,2"])
    with pytest.raises(RecipeError, match="how many bins it has"):
        load_recipe(write(text), ["grid.file=g.json", "grid.bins=4,4,4,4,4,4,2"])
