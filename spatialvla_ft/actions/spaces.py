"""What the numbers of an action mean: groups with units and frames.

Raw and normalised actions never share a type: `RawActions` are in the robot's own units,
`NormalisedActions` in [-1, 1] per dimension (the gripper, 0 closed to 1 open, in both).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NewType, get_args

import numpy as np
from numpy.typing import NDArray

RawActions = NewType("RawActions", NDArray[np.float32])
"""(..., dim) in the units of an `ActionSpace`."""

NormalisedActions = NewType("NormalisedActions", NDArray[np.float32])
"""(..., dim) in [-1, 1]; the gripper in [0, 1]."""

Role = Literal["translation", "rotation", "gripper", "joint"]


@dataclass(frozen=True)
class ActionGroup:
    """Consecutive action dimensions of one role, e.g. the three translations of an arm.

    Attributes:
        role: what the numbers are.
        names: of the dimensions, unique within an action space.
        unit: of every dimension.
        frame: what they are relative to.
        arm: which arm, e.g. "left"; empty where there is only one.
        delta: whether they are changes per step, so that 0 means no motion.
    """

    role: Role
    names: tuple[str, ...]
    unit: str
    frame: str
    arm: str = ""
    delta: bool = False

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

    @property
    def deltas(self) -> NDArray[np.bool_]:
        """(dim,) True where 0 in the robot's units means no motion."""
        return np.array([group.delta for group in self.groups for _ in group.names], dtype=bool)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` gives an equal space."""
        return {**asdict(self), "groups": [asdict(group) for group in self.groups]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ActionSpace:
        """From `to_dict`; ValueError names an unknown role or what is missing."""
        groups = []
        for index, entry in enumerate(values.get("groups") or ()):
            missing = [key for key in ("role", "names", "unit", "frame") if key not in entry]
            if missing:
                raise ValueError(f"groups[{index}] of the action space lacks {missing}")
            if entry["role"] not in get_args(Role):
                raise ValueError(
                    f"groups[{index}] of the action space has role {entry['role']!r}; it must be "
                    f"one of {list(get_args(Role))}"
                )
            groups.append(ActionGroup(**{**entry, "names": tuple(entry["names"])}))
        if not groups:
            raise ValueError("the action space has no groups; it needs at least one")
        return cls(tuple(groups), values.get("control_hz"))

    def slice_of(self, role: Role) -> slice:
        """Where the first group of `role` lies; ValueError if the space has none."""
        start = 0
        for group in self.groups:
            if group.role == role:
                return slice(start, start + group.dim)
            start += group.dim
        have = [group.role for group in self.groups]
        raise ValueError(f"this action space has no {role!r} group; it has {have}")


def _arm(arm: str, frame: str, *, rotates: bool = True) -> tuple[ActionGroup, ...]:
    """Translation, rotation where there is one, and gripper of one arm."""
    prefix = f"{arm}_" if arm else ""
    groups = [
        ("translation", ("x", "y", "z"), "m", frame, True),
        ("rotation", ("roll", "pitch", "yaw"), "rad", frame, True),
        ("gripper", ("gripper",), "1 = open, 0 = closed", "absolute", False),
    ]
    return tuple(
        ActionGroup(role, tuple(prefix + n for n in names), unit, where, arm, delta)  # type: ignore[arg-type]
        for role, names, unit, where, delta in groups
        if rotates or role != "rotation"
    )


def end_effector_delta(control_hz: float | None = None, frame: str = "base") -> ActionSpace:
    """One arm: (dx, dy, dz) m, (roll, pitch, yaw) rad as scipy's 'xyz', gripper 1 open 0 closed."""
    return ActionSpace(_arm("", frame), control_hz)


def arms_delta(
    arms: Mapping[str, bool], control_hz: float | None = None, frame: str = "base"
) -> ActionSpace:
    """Arms side by side: {name: whether its hand turns}, each as in `end_effector_delta`."""
    groups = [group for name, turns in arms.items() for group in _arm(name, frame, rotates=turns)]
    return ActionSpace(tuple(groups), control_hz)


def two_arms_delta(
    control_hz: float | None = None, frame: str = "base", arms: tuple[str, str] = ("left", "right")
) -> ActionSpace:
    """Two arms side by side, 14 numbers, each arm as in `end_effector_delta`."""
    return arms_delta(dict.fromkeys(arms, True), control_hz, frame)


def translation_delta(control_hz: float | None = None, frame: str = "base") -> ActionSpace:
    """An arm whose hand cannot turn: (dx, dy, dz) m and the gripper."""
    return ActionSpace(_arm("", frame, rotates=False), control_hz)


def joint_space(
    joints: int, control_hz: float | None = None, *, delta: bool = False, gripper: bool = True
) -> ActionSpace:
    """Joint angles, rad: positions, or changes per step with `delta`; then the gripper, if any."""
    names = tuple(f"joint_{index}" for index in range(1, joints + 1))
    hand = ActionGroup("gripper", ("gripper",), "1 = open, 0 = closed", "absolute")
    arm = ActionGroup("joint", names, "rad", "joint", delta=delta)
    return ActionSpace((arm, hand) if gripper else (arm,), control_hz)
