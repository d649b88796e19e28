"""What a recipe says of its global batch, and the accumulation that follows."""

from __future__ import annotations

import pytest

from spatialvla_ft.training.build import build
from spatialvla_ft.training.global_batch import with_accumulation
from spatialvla_ft.training.recipe import Recipe, RecipeError


def recipe(**train):
    return Recipe.model_validate(
        {
            "output": "x",
            "model": {"base": "a/b"},
            "data": {"datasets": [{"path": "d"}]},
            "train": {"steps": 1, "learning_rate": 0.1, **train},
        }
    )


@pytest.mark.parametrize(
    ("batch", "processes", "accumulation"), [(32, 64, 1), (32, 8, 8), (2, 1, 1024)]
)
def test_accumulation_fills_what_the_machine_leaves_open(batch, processes, accumulation):
    asked = recipe(global_batch=2048, batch_size=batch)
    found = with_accumulation(asked, processes)
    assert found.train.gradient_accumulation == accumulation
    assert batch * processes * accumulation == 2048
    again = Recipe.model_validate(found.model_dump(mode="json"))  # as the run's folder keeps it
    assert with_accumulation(again, processes) == again


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(
        RecipeError, match=r"2048 is no multiple of .* 24 x 64 .*: set train.batch_"
    ):
        with_accumulation(recipe(global_batch=2048, batch_size=24), 64)
    with pytest.raises(RecipeError, match=r"batch_size=16$"):
        with_accumulation(recipe(global_batch=2048, batch_size=20), 64)
    with pytest.raises(RecipeError, match=r"number of processes that divides it"):
        with_accumulation(recipe(global_batch=10, batch_size=1), 3)


def test_a_stated_accumulation_is_checked():
    stated = recipe(global_batch=48, batch_size=4, gradient_accumulation=3)
    assert with_accumulation(stated, 4) == stated
    with pytest.raises(RecipeError, match=r"is 48, but .* 4 x 2 process.* 3 = 24; leave"):
        with_accumulation(stated, 2)
    free = recipe(batch_size=5)
    assert with_accumulation(free, 3) is free


def test_a_run_has_the_accumulation_of_its_processes(recipe_of, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = build(recipe_of("full", overrides=["train.global_batch=12"]))
    assert run.recipe.train.gradient_accumulation == 3
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(RecipeError, match=r"12 is no multiple of .* 2 x 5"):
        build(recipe_of("full", overrides=["train.global_batch=12"]))
