"""Which action head a run trains: the recipe's, or the base's for the actions of its data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ..actions.grid import ActionGrid
from ..actions.grid_io import grid_to_dict
from ..actions.spaces import ActionSpace
from ..heads.registry import DEFAULT, build_head
from ..models.configuration_spatialvla import SpatialVLAConfig
from .recipe import Recipe, RecipeError

logger = logging.getLogger(__name__)


def head_fields(recipe: Recipe, space: ActionSpace, grid: ActionGrid | None) -> dict[str, Any]:
    """Config fields of the action head: the recipe's, else the base's for this data's actions.

    None where the base's head stays as it is. `cells: grid` of a heatmap becomes the cells of the
    run's grid.

    Raises:
        RecipeError: no such head, or a setting that it does not have.
    """
    asked, before = recipe.model.head, None
    if recipe.model.base is not None and (Path(recipe.model.base) / "config.json").is_file():
        found, _ = SpatialVLAConfig.get_config_dict(recipe.model.base)
        before = found.get("action_head")
    if asked is None and before is None:
        return {}
    settings = (
        dict(before or {}) if asked is None else {"kind": asked.kind, **(asked.model_extra or {})}
    )
    if settings.get("kind", DEFAULT) == DEFAULT and set(settings) <= {"kind"}:
        return {"action_head": None}
    if settings.get("cells") == "grid" and grid is not None:
        settings["cells"] = grid_to_dict(grid)
    settings = json.loads(json.dumps({**settings, "space": space.to_dict()}))  # as it is kept
    try:  # before weights are read: sizes of the model do not matter to what may be said
        build_head(settings, 8, 1)
    except ValueError as error:
        raise RecipeError(f"model.head: {error}") from None
    if asked is None and settings != before:
        logger.warning(
            "the base's head %r is for other actions: a new one starts from random numbers",
            settings["kind"],
        )
    return {"action_head": settings}
