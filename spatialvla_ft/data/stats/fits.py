"""Fits to the normalised actions of a dataset or a mixture, kept by content.

A mixture is fitted as it is drawn: every dataset is normalised by its own statistics, and its
actions weigh what its share of the draws says.

Some actions of a mixture as they are drawn, for what needs them in memory: errors, pictures.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from spatialvla_ft.actions.fit import (
    Gaussians,
    GridKind,
    axis_tables,
    fit_grid_blocks,
    gaussian_moments,
    gaussians_of,
    quantile_grid,
)
from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.grid_io import grid_from_dict, grid_to_dict
from spatialvla_ft.actions.normalise import ActionStatistics, normalise
from spatialvla_ft.actions.spaces import ActionSpace, NormalisedActions, RawActions
from spatialvla_ft.actions.summaries import Block, Moments
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.samples import SampleDataset
from spatialvla_ft.data.stats.blocks import mixture_blocks, normalised_blocks, step_weights
from spatialvla_ft.data.stats.kept import content_key, kept_json
from spatialvla_ft.data.stats.statistics import normalised_dimensions, streamed_statistics


@dataclass(frozen=True)
class QuantileFit:
    """Bins that hold equal numbers of the actions.

    Attributes:
        grid: the bins.
        error: {axis: how far below the true one the quantile under an edge may lie}, in the axis's
            own unit; 0 where it is exact. See `actions/quantiles.py`.
    """

    grid: ActionGrid
    error: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"grid": grid_to_dict(self.grid), "error": self.error}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> QuantileFit:
        """From what `to_dict` gave."""
        return cls(grid_from_dict(content["grid"]), dict(content["error"]))


@dataclass(frozen=True)
class MixtureActions:
    """The normalised actions of a mixture, as they are drawn.

    Attributes:
        datasets: the parts.
        statistics: {dataset: statistics} that normalise each.
        shares: how often each is drawn, any scale; those of share 0 count for nothing.
    """

    datasets: Sequence[SampleDataset]
    statistics: Mapping[str, ActionStatistics]
    shares: Sequence[float]

    @property
    def space(self) -> ActionSpace:
        """What the actions are."""
        return self.datasets[0].action_space

    @property
    def draws_evenly(self) -> bool:
        """Whether every action of the datasets that are drawn at all weighs the same."""
        weights = [w for w in step_weights(self.datasets, self.shares) if w > 0]
        return max(weights) - min(weights) < 1e-9

    def blocks(self) -> Iterator[Block]:
        """(n, dim) actions and the weight of each; the weights average 1."""
        return mixture_blocks(self.datasets, self.statistics, self.shares)

    def without(self, excluded: Sequence[str]) -> MixtureActions:
        """The same with share 0 for datasets called `name/version` or `name`.

        Raises:
            DatasetError: the mixture has no such dataset, or no other.
        """
        known = {alias for d in self.datasets for alias in (d.name, d.name.split("/")[0])}
        if unknown := sorted(set(excluded) - known):
            names = ", ".join(d.name for d in self.datasets)
            raise DatasetError(f"cannot exclude {unknown}: there are {names}")
        shares = [
            0.0 if d.name in excluded or d.name.split("/")[0] in excluded else share
            for d, share in zip(self.datasets, self.shares, strict=True)
        ]
        if not sum(shares) > 0:
            raise DatasetError(f"excluding {list(excluded)} leaves no dataset to fit to")
        return dataclasses.replace(self, shares=shares)

    def symmetric(self) -> MixtureActions:
        """The same, normalised so that no motion is 0, as grids with zero bins need it."""
        deltas = self.space.deltas
        statistics = {name: known.symmetric(deltas) for name, known in self.statistics.items()}
        return dataclasses.replace(self, statistics=statistics)

    def key(self, *more: Any) -> str | None:
        """Hash of everything that a fit depends on; None if it cannot be known."""
        total = sum(self.shares)
        keys = [
            (content_key(d, self.statistics[d.name].to_dict()), repr(share / total))
            for d, share in zip(self.datasets, self.shares, strict=True)
        ]
        if any(key is None for key, _ in keys):
            return None
        return content_key(self.datasets[0], keys, *more)

    def gaussians(self) -> Gaussians:
        """As `fit_gaussians`, of the mixture; only datasets that are new are read."""
        weights = step_weights(self.datasets, self.shares)
        parts = [
            _moments(dataset, self.statistics[dataset.name]).scaled(weight)
            for dataset, weight in zip(self.datasets, weights, strict=True)
            if weight > 0
        ]
        return gaussians_of(sum(parts[1:], start=parts[0]), self.space)

    def grid(
        self, kind: GridKind, *, bins: Any = None, min_sigma: float = 0.0, zero_bin: bool = False
    ) -> ActionGrid:
        """As `fit_grid`, of the mixture."""
        if kind == "quantile":
            return self.quantiles(bins=bins, zero_bin=zero_bin).grid

        def fit() -> dict[str, Any]:
            return grid_to_dict(
                fit_grid_blocks(
                    kind,
                    self.blocks,
                    space=self.space,
                    bins=bins,
                    min_sigma=min_sigma,
                    zero_bin=zero_bin,
                    gaussians=self.gaussians() if kind == "gaussian" else None,
                )
            )

        key = self.key(kind, bins, min_sigma, zero_bin, self.space.to_dict())
        return grid_from_dict(kept_json(self.datasets[0].store.statistics_dir, "grid", key, fit))

    def quantiles(self, *, bins: Any = None, zero_bin: bool = False) -> QuantileFit:
        """The quantile grid of the mixture with the error of its edges."""

        def fit() -> dict[str, Any]:
            tables = axis_tables(self.blocks, self.space)
            grid = quantile_grid(tables, space=self.space, bins=bins, zero_bin=zero_bin)
            error = {axis: tables[axis].error for axis in grid.edges}
            return QuantileFit(grid, error).to_dict()

        key = self.quantile_key(bins=bins, zero_bin=zero_bin)
        folder = self.datasets[0].store.statistics_dir
        return QuantileFit.from_dict(kept_json(folder, "quantiles", key, fit))

    def quantile_key(self, *, bins: Any = None, zero_bin: bool = False) -> str | None:
        """Hash of everything that `quantiles` depends on."""
        return self.key(bins, zero_bin, self.space.to_dict())

    def summary(self) -> ActionStatistics:
        """Statistics of the normalised actions of the mixture; quantiles by weight."""

        def compute() -> dict[str, Any]:
            episodes = sum(
                len(d.episodes)
                for d, share in zip(self.datasets, self.shares, strict=True)
                if share
            )
            mask = normalised_dimensions(self.space)
            found = streamed_statistics(self.blocks, mask, num_trajectories=episodes)
            return found.by_quantiles().to_dict()

        folder = self.datasets[0].store.statistics_dir
        return ActionStatistics.from_dict(kept_json(folder, "mixture", self.key(), compute))


def _moments(dataset: SampleDataset, statistics: ActionStatistics) -> Moments:
    """Moments of what Gaussians are fitted to, of one dataset."""
    space = dataset.action_space

    def compute() -> dict[str, list[float]]:
        blocks = ((block, 1.0) for block in normalised_blocks(dataset, statistics))
        found = gaussian_moments(blocks, space)
        return {name: getattr(found, name).tolist() for name in ("weight", "mean", "squares")}

    key = content_key(dataset, statistics.to_dict(), space.to_dict())
    found = kept_json(dataset.store.statistics_dir, "gaussians", key, compute)
    return Moments(**{name: np.asarray(values) for name, values in found.items()})


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
