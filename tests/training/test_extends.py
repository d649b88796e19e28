"""Recipes that build on others: what wins, and that a mistake is named where it stands."""

from __future__ import annotations

import pytest

from spatialvla_ft.training.recipe import RecipeError, load_recipe

BASE = """\
output: runs/base
model: {base: some/checkpoint}
data:
  datasets:
    - path: a/1.0.0
    - path: b/1.0.0
lora: {rank: 32, train_whole: [spatial_embed_tokens]}
train:
  steps: 10
  batch_size: 2
  learning_rate: 1.0e-3
"""


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    write = make
    write("base.yaml", BASE)
    return make


def test_sections_merge_and_lists_are_replaced(write):
    file = write(
        "toy/own.yaml",
        "extends: ../base.yaml\n"
        "data: {datasets: [{path: c/1.0.0}]}\n"
        "lora: {rank: 4}\n"
        "train: {steps: 2}\n",
    )
    recipe = load_recipe(file, ["train.batch_size=7"])
    assert [str(entry.path) for entry in recipe.data.datasets] == ["c/1.0.0"]
    assert (recipe.lora.rank, recipe.lora.train_whole) == (4, ["spatial_embed_tokens"])
    assert (recipe.train.steps, recipe.train.batch_size) == (2, 7)
    assert recipe.train.learning_rate == 1e-3
    assert str(recipe.output) == "runs/base"


def test_of_several_the_later_wins_and_null_removes_a_section(write):
    write("small.yaml", "seed: 5\ntrain: {steps: 3, batch_size: 1}\n")
    file = write("own.yaml", "extends: [base.yaml, small.yaml]\nlora: null\ntrain: {steps: 4}\n")
    recipe = load_recipe(file)
    assert recipe.lora is None
    assert (recipe.seed, recipe.train.steps, recipe.train.batch_size) == (5, 4, 1)


def test_mistakes_are_named_where_they_stand(write, tmp_path):
    write("base.yaml", BASE.replace("steps: 10", "steps: many"))
    file = write("own.yaml", "extends: base.yaml\nseed: 1\nlora:\n  rnak: 3\n")
    with pytest.raises(RecipeError) as raised:
        load_recipe(file, ["data.holdout=2"])
    lines = str(raised.value).splitlines()
    starts = [
        f"{file}: override 'data.holdout=2': data.holdout",
        f"{file}:4: unknown key lora.rnak, did you mean rank?",
        f"{tmp_path / 'base.yaml'}:9: train.steps",
    ]
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    assert len(lines) == len(starts)


def test_files_that_cannot_be_extended(write):
    file = write("own.yaml", "seed: 1\nextends: bose.yaml\n")
    with pytest.raises(RecipeError, match=r"own.yaml:2: extends bose.yaml, but .* does not exist"):
        load_recipe(file)
    write("one.yaml", "extends: two.yaml\n")
    two = write("two.yaml", "extends: one.yaml\n")
    with pytest.raises(RecipeError, match=r"two.yaml extends itself, through two.yaml and one"):
        load_recipe(two)
    write("list.yaml", "- 1\n")
    with pytest.raises(RecipeError, match=r"list.yaml must hold a mapping"):
        load_recipe(write("own.yaml", "extends: list.yaml\n"))
