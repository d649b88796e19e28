"""Episodes that are kept out of training."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.sample_dataset import SampleDataset

Dataset = TypeVar("Dataset", bound=SampleDataset)


def holdout(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(rest, held out): `fraction` of the episodes, drawn by `seed`, at least one of each."""
    count = len(dataset.episodes)
    held = max(1, round(fraction * count))
    if not 0 < fraction < 1 or held >= count:
        raise DatasetError(
            f"cannot hold out {fraction} of {count} episodes of {dataset.name}: the fraction must "
            "be between 0 and 1 and leave an episode on both sides"
        )
    order = np.random.default_rng(seed).permutation(count)
    parts = np.sort(order[held:]), np.sort(order[:held])
    rest, held_out = (dataset.subset(dataset.episodes[part]) for part in parts)
    return rest, held_out
