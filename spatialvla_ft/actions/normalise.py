"""Between a robot's units and [-1, 1], by a range of each dimension: q01 to q99.

As the released checkpoints were trained, and as their processors decode:

- normalise: 2 (x - q01) / (q99 - q01 + 1e-8) - 1, clipped to [-1, 1]; a masked-in dimension that
  never changes (min == max) becomes 0;
- unnormalise: (a + 1) / 2 (q99 - q01) + q01, so that the 0 of a constant dimension is its constant;
- dimensions that `mask` leaves out (the gripper) pass unchanged both ways.

The range is the 1 % and 99 % quantiles of the data, but of a dimension that seldom moves it is
wider (see `ranges.py`): between such quantiles there is nothing, and every motion would decode to
rest. Statistics of a released checkpoint keep their numbers; `ActionStatistics.degenerate` finds
the dimensions that they lose.

Another difference: the released training code also sets a constant GRIPPER to 0, which tells a
robot whose gripper is always open that it is closed. Here the mask wins.
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
        q01: (dim,) what becomes -1: the 1 % quantile, or less where the range was widened.
        q99: (dim,) what becomes 1: the 99 % quantile, or more where the range was widened.
        mask: (dim,) True where a dimension is normalised; False for the gripper.
        num_transitions: steps that were counted; 0 if unknown.
        num_trajectories: episodes that were counted; 0 if unknown.
        quantiles: (2, dim) the 1 % and 99 % quantiles themselves; None where q01 and q99 are they.
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
    quantiles: Float64[np.ndarray, "2 dim"] | None = None

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
        """Normalised dimensions that change, but whose range is empty: all decode to one value."""
        return np.asarray(self.mask & ~self.constant & (self.q99 - self.q01 <= EPSILON))

    @property
    def widened(self) -> Bool[np.ndarray, " dim"]:
        """Dimensions whose range is wider than their quantiles, so that rare motion is kept."""
        if self.quantiles is None:
            return np.zeros(self.dim, bool)
        low, high = self.quantiles
        return np.asarray((self.q01 < low) | (self.q99 > high))

    @property
    def reach(self) -> Float64[np.ndarray, " dim"]:
        """The extreme value of each dimension that lies farthest from the middle of its range."""
        middle = (self.q01 + self.q99) / 2
        return np.where(self.max - middle >= middle - self.min, self.max, self.min)

    def by_quantiles(self) -> ActionStatistics:
        """The same with nothing widened, as the released code normalises."""
        if self.quantiles is None:
            return self
        low, high = self.quantiles
        return replace(self, q01=low, q99=high, quantiles=None)

    def symmetric(self, which: Bool[np.ndarray, " dim"]) -> ActionStatistics:
        """The same with the range -q to q in some dimensions, q the larger of |q01| and |q99|.

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
        if self.quantiles is not None:
            low, high = self.quantiles.tolist()
            action["quantiles"] = {"q01": low, "q99": high}
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
        if found := action.get("quantiles"):
            values["quantiles"] = np.array([found["q01"], found["q99"]], np.float64)
        lengths = {name: array.shape[-1] for name, array in {**values, "mask": mask}.items()}
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
