"""Which parameters a run trains, when the recipe names only some."""

from __future__ import annotations

import pytest

from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import RecipeError

ONLY = "train.only=[spatial_embed_tokens, position_embedding_3d]"
WITHOUT_FREEZE = "train.freeze=null"


def test_only_what_is_named_moves(recipe_of):
    run = build(recipe_of("full", overrides=["train.steps=2", ONLY, WITHOUT_FREEZE]))
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    train(run)
    moved = {n for n, p in run.model.named_parameters() if not p.equal(before[n])}
    tops = {name.split(".")[0] for name in moved}
    assert tops == {"spatial_embed_tokens", "position_embedding_3d"}
    assert moved == {n for n in before if n.startswith(tuple(tops))}


def test_a_name_that_is_no_parameter_is_refused(recipe_of):
    recipe = recipe_of("full", overrides=["train.only=[spatial_tokens]", WITHOUT_FREEZE])
    with pytest.raises(RecipeError, match=r"train.only names no parameter: \['spatial_tokens'\]"):
        build(recipe)


@pytest.mark.parametrize(
    ("kind", "cure"), [("lora", "lora.train_whole"), ("full", "at most one of train.only")]
)
def test_contradictions_are_refused(recipe_of, kind, cure):
    with pytest.raises(RecipeError, match=cure):
        recipe_of(kind, overrides=[ONLY])
