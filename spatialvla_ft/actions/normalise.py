"""Between a robot's units and [-1, 1], by the 1 % and 99 % quantiles of a dataset.

As the released checkpoints were trained, and as their processors decode:

- normalise: 2 (x - q01) / (q99 - q01 + 1e-8) - 1, clipped to [-1, 1]; a masked-in dimension that
  never changes (min == max) becomes 0;
- unnormalise: (a + 1) / 2 (q99 - q01) + q01, so that the 0 of a constant dimension is its constant;
- dimensions that `mask` leaves out (the gripper) pass unchanged both ways.

One difference: the released training code also sets a constant GRIPPER to 0, which tells a robot
whose gripper is always open that it is closed. Here the mask wins. A dimension whose q01 equals q99
though it does change is a step function under this formula, as released:
`ActionStatistics.degenerate` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

from spatialvla_ft.actions.spaces import NormalisedActions, RawActions

EPSILON = 1e-8
_FIELDS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True)
class ActionStatistics:
    """Moments, range and quantiles per action dimension, in the robot's units.

    Attributes:
        mean: (dim,) of all steps.
        std: (dim,) population standard deviation.
        min: (dim,) smallest value.
        max: (dim,) largest value.
        q01: (dim,) 1 % quantile.
        q99: (dim,) 99 % quantile.
        mask: (dim,) True where a dimension is normalised; False for the gripper.
        num_transitions: steps that were counted; 0 if unknown.
        num_trajectories: episodes that were counted; 0 if unknown.
    """

    mean: Float64[np.ndarray, " dim"]
    std: Float64[np.ndarray, " dim"]
    min: Float64[np.ndarray, " dim"]
    max: Float64[np.ndarray, " dim"]
    q01: Float64[np.ndarray, " dim"]
    q99: Float64[np.ndarray, " dim"]
    mask: Bool[np.ndarray, " dim"]
    num_transitions: int = 0
    num_trajectories: int = 0

    @property
    def dim(self) -> int:
        """Number of action dimensions."""
        return len(self.mask)

    @property
    def constant(self) -> Bool[np.ndarray, " dim"]:
        """Dimensions that never change."""
        return np.asarray(self.min == self.max)

    @property
    def degenerate(self) -> Bool[np.ndarray, " dim"]:
        """Normalised dimensions that change, but in less than 2 % of the steps."""
        return np.asarray(self.mask & ~self.constant & (self.q99 - self.q01 <= EPSILON))

    def symmetric(self, which: Bool[np.ndarray, " dim"]) -> ActionStatistics:
        """The same with quantiles -q and q in some dimensions, q the larger of |q01| and |q99|.

        Then 0 in the robot's units is 0 normalised, so that a grid with a zero bin represents no
        motion exactly; the price is range that one side does not use.
        """
        reach = np.maximum(np.abs(self.q01), np.abs(self.q99))
        chosen = which & self.mask
        return replace(
            self,
            q01=np.where(chosen, -reach, self.q01),
            q99=np.where(chosen, reach, self.q99),
        )

    def to_dict(self) -> dict[str, Any]:
        """A dataset's entry in the layout of the released `statistics`: action, counts."""
        action: dict[str, Any] = {name: getattr(self, name).tolist() for name in _FIELDS}
        return {
            "action": {**action, "mask": self.mask.tolist()},
            "num_transitions": self.num_transitions,
            "num_trajectories": self.num_trajectories,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ActionStatistics:
        """From a dataset's entry of a released `statistics`, or its `action` alone.

        A missing mask normalises everything, as the released processors read it.

        Raises:
            ValueError: a field is missing or of another length.
        """
        action = entry.get("action", entry)
        missing = [name for name in _FIELDS if name not in action]
        if missing:
            raise ValueError(f"action statistics without {missing}; they have {sorted(action)}")
        values = {name: np.asarray(action[name], np.float64) for name in _FIELDS}
        dim = len(values["q01"])
        mask = np.asarray(action.get("mask", [True] * dim), bool)
        lengths = {name: len(array) for name, array in {**values, "mask": mask}.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"action statistics of different lengths: {lengths}")
        counts = {k: int(entry.get(k, 0)) for k in ("num_transitions", "num_trajectories")}
        fields: dict[str, Any] = {**values, "mask": mask, **counts}
        return cls(**fields)


def _checked(actions: NDArray[np.floating[Any]], statistics: ActionStatistics) -> NDArray[Any]:
    values = np.asarray(actions, np.float64)
    if values.ndim == 0 or values.shape[-1] != statistics.dim:
        raise ValueError(
            f"actions of shape {values.shape} for statistics of {statistics.dim} dimensions; the "
            "statistics belong to another dataset"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} action values are NaN or infinite")
    return values


def normalise(raw: RawActions, statistics: ActionStatistics) -> NormalisedActions:
    """(..., dim) robot units to [-1, 1]; ValueError on another width, NaN or infinity."""
    values = _checked(raw, statistics)
    scaled = 2 * (values - statistics.q01) / (statistics.q99 - statistics.q01 + EPSILON) - 1
    scaled = np.where(statistics.constant, 0.0, np.clip(scaled, -1, 1))
    return NormalisedActions(np.where(statistics.mask, scaled, values).astype(np.float32))


def unnormalise(normalised: NormalisedActions, statistics: ActionStatistics) -> RawActions:
    """(..., dim) [-1, 1] to robot units; ValueError on another width, NaN or infinity."""
    values = _checked(normalised, statistics)
    scaled = 0.5 * (values + 1) * (statistics.q99 - statistics.q01) + statistics.q01
    return RawActions(np.where(statistics.mask, scaled, values).astype(np.float32))
