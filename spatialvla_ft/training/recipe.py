"""Recipes: what a training run is, in one YAML file.

Unknown keys, wrong types and contradictions are reported all at once, with file and line;
`key.sub=value` overrides take the same path. A recipe may build on another: `extends: other.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from ..checked_yaml import RecipeError, apply_overrides, explain, read_text
from ..near import near_path
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
        if self.model.quantisation is not None and self.lora is None:
            raise ValueError(
                "model.quantisation is for frozen weights under adapters; set lora, or remove it"
            )
        if self.model.dtype == "bf16":
            if self.lora is None:
                raise ValueError(
                    "model.dtype bf16 is for frozen weights under adapters: small steps of trained "
                    "weights would be rounded away. Set lora, or model.dtype: float32 with "
                    "train.precision: bf16"
                )
            if self.train.precision != "bf16":
                raise ValueError(
                    "model.dtype bf16 needs train.precision: bf16, in which layers of both types "
                    "work together"
                )
        if self.lora is not None and self.model.new is not None:
            raise ValueError(
                "lora needs model.base: an adapter of a new model has no base to come back to. "
                "Train the new model whole first, or remove lora"
            )
        if self.grid.bins is not None and self.grid.fit is None and self.model.new is None:
            raise ValueError(
                "grid.bins is of a grid that is fitted: set grid.fit, or resize the base "
                "(`spatialvla-ft grids resize`)"
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
        raise RecipeError(
            f"{path} does not exist; recipes/ holds recipes to start from{near_path(path)}"
        )
    text = read_text(path)
    apply_overrides(text, path, overrides)
    try:
        return Recipe.model_validate(text.content)
    except ValidationError as error:
        problems = [explain(Recipe, path, text.places, item) for item in error.errors()]
        raise RecipeError("\n".join(problems)) from None
