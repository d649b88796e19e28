"""The statistics that a run normalises by: widened for rare motion, or by quantiles alone.

A run that began before ranges were widened keeps the quantiles it began with.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..actions.normalise import ActionStatistics
from ..actions.ranges import lost_words
from ..data.samples import SampleDataset
from ..data.stats.statistics import dataset_statistics, proprio_statistics
from .checkpoints import all_checkpoints, stored_identity
from .recipe import Recipe

logger = logging.getLogger(__name__)


def action_statistics(recipe: Recipe, dataset: SampleDataset) -> ActionStatistics:
    """Statistics of a dataset's actions, with the ranges that a new run of a recipe takes."""
    known = dataset_statistics(dataset)
    return known.by_quantiles() if recipe.data.action_range == "quantiles" else known


def run_statistics(
    recipe: Recipe, datasets: Sequence[SampleDataset], *, fresh: bool = False
) -> dict[str, ActionStatistics]:
    """{dataset: statistics of its actions}, as a run of a recipe, or its continuation, takes them.

    Args:
        recipe: of the run.
        datasets: what it trains on.
        fresh: whether the run starts over, whatever its output folder holds.
    """
    began = {} if fresh else _began_with(recipe)
    found = {}
    for dataset in datasets:
        known = action_statistics(recipe, dataset)
        if known.quantiles is not None and _by_quantiles(recipe, began, dataset.name, "action"):
            space, wide = dataset.action_space, known.widened
            known = known.by_quantiles()
            logger.warning(
                "%s: this run began with q01..q99 as the range of its actions and goes on with it: "
                "%s. --fresh, or another output, keeps that motion",
                dataset.name,
                "; ".join(lost_words(known, wide, space.names, space.units)),
            )
        found[dataset.name] = known
    return found


def run_proprio(recipe: Recipe, dataset: SampleDataset, *, fresh: bool = False) -> ActionStatistics:
    """Statistics of a dataset's proprioception; the arguments are as in `run_statistics`."""
    known = proprio_statistics(dataset)
    began = {} if fresh else _began_with(recipe)
    old = _by_quantiles(recipe, began, dataset.name, "proprio")
    return known.by_quantiles() if old or recipe.data.action_range == "quantiles" else known


def _began_with(recipe: Recipe) -> dict[str, Any]:
    """The identity of the run that the output folder holds; empty where there is none."""
    for folder in reversed(all_checkpoints(Path(recipe.output) / "checkpoints")):
        try:
            return stored_identity(folder)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: training names it, and goes on from the one before
    return {}


def _by_quantiles(recipe: Recipe, began: dict[str, Any], name: str, what: str) -> bool:
    """Whether an earlier part of the run took quantiles for ranges that would now be wider."""
    if recipe.data.action_range is not None:
        return False
    own = f"statistics.{name}.{what}"
    return f"{own}.q01.0" in began and f"{own}.quantiles.q01.0" not in began
