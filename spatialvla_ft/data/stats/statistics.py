"""Statistics of a dataset's actions, computed once per content, in memory that does not grow.

Moments and extremes take one pass over the episodes; quantiles are exact, by
`actions/summaries.py`, at the cost of a second pass over datasets of more than a million steps. The
range of dimensions that seldom move is widened by `actions/ranges.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from spatialvla_ft.actions.normalise import ActionStatistics
from spatialvla_ft.actions.ranges import QUARTILES, keep_motion, tails
from spatialvla_ft.actions.spaces import ActionSpace, RawActions
from spatialvla_ft.actions.summaries import BUFFER_ROWS, Blocks, Summary
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.samples import SampleDataset
from spatialvla_ft.data.stats.blocks import proprio_blocks, raw_blocks
from spatialvla_ft.data.stats.kept import content_key, kept_json

RANGES = "ranges 1"
"""Changes with the rule that widens ranges, so that statistics kept by another are not taken."""


def normalised_dimensions(space: ActionSpace) -> Bool[np.ndarray, " dim"]:
    """(dim,) True for all but the gripper."""
    return np.array([group.role != "gripper" for group in space.groups for _ in group.names])


def compute_statistics(
    actions: RawActions,
    mask: Bool[np.ndarray, " dim"],
    *,
    num_trajectories: int = 0,
    units: Sequence[str] | None = None,
) -> ActionStatistics:
    """Statistics of (N, dim) actions.

    As the released code computes them, with the population's standard deviation and with exact
    quantiles by linear interpolation between the two nearest of all N values; but rare motion is
    kept (`actions/ranges.py`; `units` help to tell it from noise), and `by_quantiles` takes that
    back.

    Raises:
        DatasetError: no actions, another width than the mask's, NaN or infinity.
    """
    actions = RawActions(np.asarray(actions))
    if actions.ndim != 2 or not len(actions) or actions.shape[1] != len(mask):
        raise DatasetError(
            f"statistics need (N, {len(mask)}) actions, N > 0; got shape {actions.shape}"
        )
    bad = ~np.isfinite(actions)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DatasetError(
            f"{int(bad.sum())} of {actions.size} action values are NaN or infinite, the first at "
            f"step {row}, dimension {column}; mend the data or the card"
        )
    wide = actions.astype(np.float64)
    shares = (0.01, 0.99, *QUARTILES, *tails(len(actions)))
    q01, q99, *others = np.quantile(actions, shares, axis=0).astype(np.float64)
    found = ActionStatistics(
        mean=wide.mean(axis=0),
        std=wide.std(axis=0),
        min=wide.min(axis=0),
        max=wide.max(axis=0),
        q01=q01,
        q99=q99,
        mask=np.asarray(mask, bool),
        num_transitions=len(actions),
        num_trajectories=num_trajectories,
    )
    quartiles, ends = np.stack(others[:3]), np.stack(others[3:])
    return keep_motion(found, quartiles, ends, lambda: [(actions, 1.0)], units)


def streamed_statistics(
    blocks: Blocks,
    mask: Bool[np.ndarray, " dim"],
    *,
    num_trajectories: int = 0,
    units: Sequence[str] | None = None,
    buffer_rows: int = BUFFER_ROWS,
) -> ActionStatistics:
    """As `compute_statistics`, from blocks of float32 actions (n, dim) with their weights.

    Up to `buffer_rows` actions are held at once; more are read a second time for the quantiles, and
    a third time if a dimension may lose its motion to them.

    Raises:
        DatasetError: there are no actions, or they are not as wide as the mask.
    """
    found = Summary(blocks, buffer_rows=buffer_rows)
    if not found.rows or len(found.min) != len(mask):
        shape = (found.rows, len(found.min) if found.rows else len(mask))
        raise DatasetError(f"statistics need (N, {len(mask)}) actions, N > 0; got shape {shape}")
    q01, q99, *others = found.quantiles((0.01, 0.99, *QUARTILES, *tails(found.rows)))
    known = ActionStatistics(
        mean=found.moments.mean,
        std=found.moments.std,
        min=found.min.astype(np.float64),
        max=found.max.astype(np.float64),
        q01=q01,
        q99=q99,
        mask=np.asarray(mask, bool),
        num_transitions=found.rows,
        num_trajectories=num_trajectories,
    )
    return keep_motion(known, np.stack(others[:3]), np.stack(others[3:]), found.again, units)


def proprio_statistics(dataset: SampleDataset) -> ActionStatistics:
    """Statistics of the proprioception of a dataset; all of its numbers are normalised.

    Raises:
        DatasetError: the card names none, or a value is NaN or infinite.
    """
    dataset.check_proprio()

    def blocks() -> Iterator[tuple[np.ndarray, float]]:
        return ((block, 1.0) for block in proprio_blocks(dataset))

    def compute() -> dict[str, object]:
        every = np.ones(dataset.proprio_dim, bool)
        return streamed_statistics(blocks, every, num_trajectories=len(dataset.episodes)).to_dict()

    folder = dataset.store.statistics_dir
    key = content_key(dataset, RANGES)
    return ActionStatistics.from_dict(kept_json(folder, "proprio", key, compute))


def dataset_statistics(
    dataset: SampleDataset, *, cache_dir: Path | None = None
) -> ActionStatistics:
    """Statistics of the actions of a dataset, after its filters on episodes and steps.

    They are kept in the store's `statistics_dir`, by a hash of card, content, filters and episodes,
    or in `cache_dir`; where that cannot be written they are computed each time.
    """

    def blocks() -> Iterator[tuple[RawActions, float]]:
        return ((block, 1.0) for block in raw_blocks(dataset))

    def compute() -> dict[str, object]:
        space = dataset.action_space
        return streamed_statistics(
            blocks,
            normalised_dimensions(space),
            num_trajectories=len(dataset.episodes),
            units=space.units,
        ).to_dict()

    folder = cache_dir or dataset.store.statistics_dir
    key = content_key(dataset, RANGES)
    return ActionStatistics.from_dict(kept_json(folder, "actions", key, compute))
