"""What a grid loses: the error between normalised actions and their decoded tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import to_numpy
from .axes import F64
from .grid import ActionGrid
from .grid_checks import Decoding
from .layout import check_actions


@dataclass(frozen=True)
class Reconstruction:
    """Normalised actions and what is left of them after encoding and decoding.

    Attributes:
        actions: (n, dim) normalised actions, clipped to [-1, 1] as `encode` does.
        decoded: (n, dim) the same, decoded.
        ids: (n, tokens) relative token ids.
        names: of the dimensions.
    """

    actions: F64
    decoded: F64
    ids: np.ndarray[Any, np.dtype[np.int64]]
    names: tuple[str, ...]

    @property
    def rmse(self) -> F64:
        """(dim,) root mean square error per dimension, normalised units."""
        return np.asarray(np.sqrt(np.mean((self.decoded - self.actions) ** 2, axis=0)))

    @property
    def worst(self) -> F64:
        """(dim,) largest absolute error per dimension, normalised units."""
        return np.asarray(np.abs(self.decoded - self.actions).max(axis=0))

    def by_dimension(self) -> dict[str, dict[str, float]]:
        """{dimension: {"rmse", "max"}} in normalised units."""
        return {
            name: {"rmse": float(rmse), "max": float(worst)}
            for name, rmse, worst in zip(self.names, self.rmse, self.worst, strict=True)
        }


def reconstruct(grid: ActionGrid, actions: Any, *, mode: Decoding | None = None) -> Reconstruction:
    """Encode and decode normalised actions (n, dim), n >= 1; `mode` as in `ActionGrid.decode`.

    The gripper is compared with its own value, so a half-open one counts as half an error.
    """
    array = check_actions(to_numpy(actions), grid.action_space)
    if len(array) == 0:
        raise ValueError("actions has no rows; there is nothing to reconstruct")
    clipped = np.clip(array, -1.0, 1.0)
    ids = grid.encode(clipped)
    decoded = grid.decode(ids, mode=mode)
    return Reconstruction(clipped, decoded, ids, grid.action_space.names)


def arm_rmse(grid: ActionGrid, actions: Any) -> float:
    """RMSE of all but the grippers, normalised; of the grippers where there is nothing else."""
    error = reconstruct(grid, actions).rmse
    arm = arm_dimensions(grid)
    return float(np.sqrt(np.mean(error[arm if arm.any() else slice(None)] ** 2)))


def motion_errors(grid: ActionGrid, actions: Any) -> F64:
    """(dim,) mean error as a share of the mean distance from rest (the median); 0 of grippers.

    That counts motion by its size: steps at rest, however many and however exact, hide nothing.
    """
    result = reconstruct(grid, actions)
    error = np.abs(result.decoded - result.actions).mean(axis=0)
    moved = np.abs(result.actions - np.median(result.actions, axis=0)).mean(axis=0)
    arm = arm_dimensions(grid) & (moved > 1e-6)
    return np.asarray(np.divide(error, moved, out=np.zeros_like(error), where=arm))


def fixed_dimensions(grid: ActionGrid) -> tuple[str, ...]:
    """Dimensions that decode to one number, since they have a single bin."""
    names = grid.action_space.names
    return tuple(
        names[slot.start + i]
        for slot in grid.slots
        if slot.shape == "lines"
        for i, axis in enumerate(slot.axes)
        if len(grid.means[axis]) == 1
    )


def arm_dimensions(grid: ActionGrid) -> NDArray[np.bool_]:
    """(dim,) True for all but grippers."""
    groups = grid.action_space.groups
    return np.array([group.role != "gripper" for group in groups for _ in group.names])
