"""All actions of datasets, a block of some thousand at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from spatialvla_ft.actions.normalise import ActionStatistics, normalise
from spatialvla_ft.actions.spaces import NormalisedActions, RawActions
from spatialvla_ft.actions.summaries import Block
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.samples import SampleDataset

BLOCK_ROWS = 1 << 14


def raw_blocks(dataset: SampleDataset, *, rows: int = BLOCK_ROWS) -> Iterator[RawActions]:
    """(n, dim) standardised actions, episode after episode, in blocks of at least `rows`.

    Raises:
        DatasetError: an action is NaN or infinite; the episode is named.
    """
    for block in _blocks(dataset, rows, "action"):
        yield RawActions(block)


def proprio_blocks(
    dataset: SampleDataset, *, rows: int = BLOCK_ROWS
) -> Iterator[Float32[np.ndarray, "n width"]]:
    """As `raw_blocks`, of the proprioception.

    Raises:
        DatasetError: the card names none, or a value is NaN or infinite.
    """
    dataset.check_proprio()
    return _blocks(dataset, rows, "proprio")


def _blocks(
    dataset: SampleDataset, rows: int, what: Literal["action", "proprio"]
) -> Iterator[NDArray[np.float32]]:
    pending: list[NDArray[np.float32]] = []
    count = 0
    for episode in dataset.episodes.tolist():
        values = getattr(dataset.standardised(episode), what)
        if not len(values):
            continue
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise DatasetError(
                f"{dataset.name}, episode {episode}: {what} {row}, dimension {column} is "
                f"{values[row, column]}; mend the data or the card, or drop the episode"
            )
        pending.append(values)
        count += len(values)
        if count >= rows:
            yield np.concatenate(pending)
            pending, count = [], 0
    if pending:
        yield np.concatenate(pending)


def normalised_blocks(
    dataset: SampleDataset, statistics: ActionStatistics
) -> Iterator[NormalisedActions]:
    """(n, dim) actions of a dataset, normalised by the given statistics."""
    for block in raw_blocks(dataset):
        yield normalise(block, statistics)


def step_weights(datasets: Sequence[SampleDataset], shares: Sequence[float]) -> list[float]:
    """What an action of each dataset weighs, so that the sums are as the shares and mean 1.

    Raises:
        DatasetError: a dataset with a share has no actions, or no share is positive.
    """
    counts = [int(dataset.episode_lengths.sum()) for dataset in datasets]
    for dataset, share, count in zip(datasets, shares, counts, strict=True):
        if share > 0 and not count:
            raise DatasetError(f"{dataset.name} has a weight but no actions; remove it")
    whole = sum(shares)
    total = sum(count for count, share in zip(counts, shares, strict=True) if share > 0)
    if not whole > 0:
        raise DatasetError(f"the weights {list(shares)} leave nothing to count")
    return [
        share / whole * (total / count) if share > 0 else 0.0
        for share, count in zip(shares, counts, strict=True)
    ]


def mixture_blocks(
    datasets: Sequence[SampleDataset],
    statistics: Mapping[str, ActionStatistics],
    shares: Sequence[float],
) -> Iterator[Block]:
    """(n, dim) normalised actions and the weight of each, dataset after dataset.

    Args:
        datasets: the parts of the mixture.
        statistics: {dataset: statistics} that normalise each.
        shares: how often each is drawn, any scale; datasets that never are give no blocks.
    """
    weights = step_weights(datasets, shares)
    for dataset, weight in zip(datasets, weights, strict=True):
        if weight > 0:
            for block in normalised_blocks(dataset, statistics[dataset.name]):
                yield block, weight
