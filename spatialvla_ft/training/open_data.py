"""The datasets of a recipe: opened, filtered, with episodes held out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..data.dataset import SampleDataset, holdout
from ..data.mixtures import Opened, Part, find_mixture, open_mixture
from ..models.observation import ObservationLayout
from .recipe import Recipe, RecipeError


def open_data(recipe: Recipe, chunk: int, layout: ObservationLayout) -> Opened:
    """The datasets that are trained on, their shares, and what is held out of each."""
    opened = _open(recipe, chunk, layout)
    pairs = [
        _divide(dataset, held, part, recipe)
        for dataset, held, part in zip(opened.datasets, opened.heldout, opened.parts, strict=True)
    ]
    return dataclasses.replace(
        opened, datasets=[train for train, _ in pairs], heldout=[held for _, held in pairs]
    )


def _open(recipe: Recipe, chunk: int, layout: ObservationLayout) -> Opened:
    """The datasets of the recipe, each with its weight; every problem with them at once."""
    data = recipe.data
    common: dict[str, Any] = {
        "horizon": chunk,
        "window": layout.window,
        "cameras": layout.cameras,
        "depth": None if data.depth.source == "sensor" else False,
        "assume_intrinsics": data.assume_intrinsics,
    }
    if data.mixture is not None:
        mixture = data.mixture
        return open_mixture(
            find_mixture(mixture.name, mixture.file),
            root=mixture.root,
            balance_weights=mixture.balance_weights,
            excuse=mixture.excuse,
            **common,
        )
    parts = {
        str(entry.path): Part(**{**entry.model_dump(), "path": str(entry.path)})
        for entry in data.datasets
    }
    if len(parts) < len(data.datasets):
        raise RecipeError(f"data.datasets name the same folder twice: {list(parts)}")
    return open_mixture(parts, balance_weights=False, **common)


def _divide(
    dataset: SampleDataset, held: SampleDataset | None, part: Part, recipe: Recipe
) -> tuple[SampleDataset, SampleDataset | None]:
    """What is trained on, and what is held out: by the mixture, or else by `data.holdout`."""
    train = dataset
    if held is None and recipe.data.holdout > 0:
        train, held = holdout(dataset, recipe.data.holdout, recipe.seed)
    if part.episodes is not None:
        if part.episodes > len(train.episodes):
            raise RecipeError(
                f"{dataset.name}: episodes is {part.episodes}, but {len(train.episodes)} are left "
                "after the holdout; record more, or lower its episodes or data.holdout"
            )
        order = np.random.default_rng(recipe.seed).permutation(len(train.episodes))
        train = train.subset(train.episodes[np.sort(order[: part.episodes])])
    return train, held
