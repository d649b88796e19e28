"""Statistics of a dataset's actions, computed once per content."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from spatialvla_ft.actions.normalise import ActionStatistics
from spatialvla_ft.actions.spaces import ActionSpace, RawActions
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.sample_dataset import SampleDataset


def normalised_dimensions(space: ActionSpace) -> Bool[np.ndarray, " dim"]:
    """(dim,) True for all but the gripper."""
    return np.array([group.role != "gripper" for group in space.groups for _ in group.names])


def compute_statistics(
    actions: RawActions, mask: Bool[np.ndarray, " dim"], *, num_trajectories: int = 0
) -> ActionStatistics:
    """Statistics of (N, dim) actions, as the released code computes them.

    Population standard deviation; quantiles by linear interpolation between the two nearest of all
    N values, exactly.

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
    q01, q99 = np.quantile(actions, [0.01, 0.99], axis=0)
    return ActionStatistics(
        mean=wide.mean(axis=0),
        std=wide.std(axis=0),
        min=wide.min(axis=0),
        max=wide.max(axis=0),
        q01=q01.astype(np.float64),
        q99=q99.astype(np.float64),
        mask=np.asarray(mask, bool),
        num_transitions=len(actions),
        num_trajectories=num_trajectories,
    )


def proprio_statistics(dataset: SampleDataset) -> ActionStatistics:
    """Statistics of the proprioception of a dataset; all of its numbers are normalised.

    Raises:
        DatasetError: the card names none, or a value is NaN or infinite.
    """
    values = dataset.proprio()
    return compute_statistics(
        RawActions(values), np.ones(values.shape[1], bool), num_trajectories=len(dataset.episodes)
    )


def dataset_statistics(
    dataset: SampleDataset, *, cache_dir: Path | None = None
) -> ActionStatistics:
    """Statistics of the actions of a dataset.

    They are kept in the store's `statistics_dir`, by a hash of card, content and episodes, or in
    `cache_dir`; where that cannot be written they are computed each time.
    """
    parts = [dataset.card.source_hash, dataset.store.content_hash]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update(np.ascontiguousarray(dataset.episodes).tobytes())
    path = (cache_dir or dataset.store.statistics_dir) / f"{digest.hexdigest()[:24]}.json"
    if _cacheable(dataset) and path.exists():
        return ActionStatistics.from_dict(json.loads(path.read_text()))
    statistics = compute_statistics(
        dataset.actions(),
        normalised_dimensions(dataset.action_space),
        num_trajectories=len(dataset.episodes),
    )
    if _cacheable(dataset):
        _write(path, statistics)
    return statistics


def _cacheable(dataset: SampleDataset) -> bool:
    """Whether content and card say all: a user's function for kinematics cannot be hashed."""
    return bool(dataset.card.source_hash) and dataset.forward_kinematics is None


def _write(path: Path, statistics: ActionStatistics) -> None:
    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(statistics.to_dict()))
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
