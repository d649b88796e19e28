"""Recipes: what a training run is, in one YAML file.

Unknown keys, wrong types and contradictions are reported all at once, with file and line;
`key.sub=value` overrides take the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from .recipe_text import RecipeError, explain, override, places_in
from .sections import Data, Grid, Lora, Model, Section, Train


class Recipe(Section):
    """One training run."""

    output: Path
    seed: int = 0
    model: Model
    data: Data
    grid: Grid = Field(default_factory=Grid)
    lora: Lora | None = None
    train: Train

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if self.train.only is not None and self.lora is not None:
            raise ValueError(
                "train.only is for training without adapters; with lora, name modules that are "
                "trained whole in lora.train_whole, and remove train.only"
            )
        if self.train.only is not None and self.train.freeze is not None:
            raise ValueError("set at most one of train.only and train.freeze")
        if self.lora is not None and self.model.new is not None:
            raise ValueError(
                "lora needs model.base: an adapter of a new model has no base to come back to. "
                "Train the new model whole first, or remove lora"
            )
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: YAML file.
        overrides: "key.sub=value", values in YAML; list items by number ("data.datasets.0.path").

    Raises:
        RecipeError: every problem, with file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path} does not exist; recipes/ holds recipes to start from")
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
        places = places_in(path, yaml.compose(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping at its top, see recipes/")
    for assignment in overrides:
        places[override(content, assignment)] = f"{path}: override {assignment!r}"
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [explain(Recipe, path, places, item) for item in error.errors()]
        raise RecipeError("\n".join(problems)) from None
