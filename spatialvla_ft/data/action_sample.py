"""Some actions of a mixture as they are drawn, for what needs them in memory: errors, pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from spatialvla_ft.actions.normalise import ActionStatistics, normalise
from spatialvla_ft.actions.spaces import NormalisedActions, RawActions
from spatialvla_ft.actions.summaries import Block
from spatialvla_ft.data.action_blocks import normalised_blocks, step_weights
from spatialvla_ft.data.fits import MixtureActions
from spatialvla_ft.data.sample_dataset import SampleDataset

SAMPLE = 100_000
"""Actions that are drawn unless another number is asked for."""


def sample_actions(
    actions: MixtureActions, count: int = SAMPLE, *, seed: int = 0, second_half: bool = False
) -> NormalisedActions:
    """(n, dim) normalised actions: all of them where that is possible, else `count` at random.

    Where all actions weigh the same and there are no more than `count`, these are all, in order;
    of more, so many different ones. Else `count` are drawn with replacement, as often from each
    dataset as its share says. Only episodes with drawn actions are read.

    Args:
        actions: the mixture.
        count: how many at most.
        seed: of the draw.
        second_half: leave out the rows that `first_half` gives.
    """
    lengths = [int(dataset.episode_lengths.sum()) for dataset in actions.datasets]
    weights = np.array(step_weights(actions.datasets, actions.shares))
    starts = [length // 2 if second_half else 0 for length in lengths]
    sizes = np.array([n - s for n, s in zip(lengths, starts, strict=True)]) * (weights > 0)
    rng = np.random.default_rng(seed)
    if actions.draws_evenly:
        total = int(sizes.sum())
        rows = np.arange(total)
        if total > count:
            rows = np.sort(rng.choice(total, count, replace=False))
        first = np.concatenate([[0], np.cumsum(sizes)])
        chosen = [rows[(rows >= a) & (rows < b)] - a for a, b in itertools.pairwise(first)]
    else:
        shares = sizes * weights
        counts = rng.multinomial(count, shares / shares.sum())
        chosen = [
            np.sort(rng.integers(size, size=n)) if n else np.empty(0, np.int64)
            for size, n in zip(sizes.tolist(), counts.tolist(), strict=True)
        ]
    parts = [
        _rows(dataset, start + rows, actions.statistics[dataset.name])
        for dataset, start, rows in zip(actions.datasets, starts, chosen, strict=True)
        if len(rows)
    ]
    return NormalisedActions(np.concatenate(parts))


def first_half(actions: MixtureActions) -> Iterator[Block]:
    """As `MixtureActions.blocks`, of the first half of the actions of every dataset."""
    weights = step_weights(actions.datasets, actions.shares)
    for dataset, weight in zip(actions.datasets, weights, strict=True):
        left = int(dataset.episode_lengths.sum()) // 2 if weight > 0 else 0
        if not left:
            continue
        for block in normalised_blocks(dataset, actions.statistics[dataset.name]):
            yield block[:left], weight
            left -= len(block)
            if left <= 0:
                break


def _rows(
    dataset: SampleDataset, rows: Int64[np.ndarray, " n"], statistics: ActionStatistics
) -> NormalisedActions:
    """Actions by their place among all of a dataset, increasing; repeats are allowed."""
    ends = np.cumsum(dataset.episode_lengths)
    at = np.searchsorted(ends, rows, side="right")
    parts = []
    for place in np.unique(at).tolist():
        inside = rows[at == place] - (int(ends[place - 1]) if place else 0)
        parts.append(dataset.standardised(int(dataset.episodes[place])).action[inside])
    return normalise(RawActions(np.concatenate(parts)), statistics)
