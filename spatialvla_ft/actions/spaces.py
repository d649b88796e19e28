"""What the numbers of an action mean: groups with units and frames.

Raw and normalised actions never share a type: `RawActions` are in the robot's own units,
`NormalisedActions` in [-1, 1] per dimension (the gripper, 0 closed to 1 open, in both).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType

import numpy as np
from numpy.typing import NDArray

RawActions = NewType("RawActions", NDArray[np.float32])
"""(..., dim) in the units of an `ActionSpace`."""

NormalisedActions = NewType("NormalisedActions", NDArray[np.float32])
"""(..., dim) in [-1, 1]; the gripper in [0, 1]."""

Role = Literal["translation", "rotation", "gripper", "joint"]


@dataclass(frozen=True)
class ActionGroup:
    """Consecutive action dimensions of one role, e.g. the three translations of an arm."""

    role: Role
    names: tuple[str, ...]
    unit: str
    frame: str

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.names)


@dataclass(frozen=True)
class ActionSpace:
    """The groups of an action, in order, and the rate at which actions are executed."""

    groups: tuple[ActionGroup, ...]
    control_hz: float | None = None

    @property
    def dim(self) -> int:
        """Total number of dimensions."""
        return sum(group.dim for group in self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every dimension, in order."""
        return tuple(name for group in self.groups for name in group.names)

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of every dimension, in order."""
        return tuple(group.unit for group in self.groups for _ in group.names)

    def slice_of(self, role: Role) -> slice:
        """Where the first group of `role` lies; ValueError if the space has none."""
        start = 0
        for group in self.groups:
            if group.role == role:
                return slice(start, start + group.dim)
            start += group.dim
        have = [group.role for group in self.groups]
        raise ValueError(f"this action space has no {role!r} group; it has {have}")


def end_effector_delta(control_hz: float | None = None, frame: str = "base") -> ActionSpace:
    """One arm: (dx, dy, dz) m, (roll, pitch, yaw) rad as scipy's 'xyz', gripper 1 open 0 closed."""
    return ActionSpace(
        groups=(
            ActionGroup("translation", ("x", "y", "z"), "m", frame),
            ActionGroup("rotation", ("roll", "pitch", "yaw"), "rad", frame),
            ActionGroup("gripper", ("gripper",), "1 = open, 0 = closed", "absolute"),
        ),
        control_hz=control_hz,
    )
