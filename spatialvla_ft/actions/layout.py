"""Which tokens an action has: one slot per group of its `ActionSpace`, one per joint.

A slot is one token of an action. Three translations make one over (theta, phi, r), three rotations
one over their three axes, a gripper one with two values. Every other dimension, such as a joint,
has a token of its own: seven joints on one token would leave each with four bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from .axes import F64, RANGES, ROTATION_AXES, TRANSLATION_AXES, spherical_from_xyz
from .spaces import ActionSpace, Role

Shape = Literal["sphere", "lines", "switch"]

LINE_BINS = 256
"""Bins of a dimension that has a token of its own (docs/decisions/0010-action-spaces.md)."""

_DEFAULT_BINS = {"sphere": (16, 32, 8), "lines": (16, 16, 16), "switch": (2,)}


@dataclass(frozen=True)
class Slot:
    """One token of an action.

    Attributes:
        name: unique, e.g. "translation", "left_rotation", "joint_3".
        role: of the group it belongs to.
        arm: of the group.
        shape: "sphere" bins (theta, phi, r) of three translations, "lines" every dimension by
            itself, "switch" is closed or open.
        start: first action dimension.
        dim: number of action dimensions.
        axes: names of the binned axes, none for a switch.
        delta: whether 0 means no motion.
    """

    name: str
    role: Role
    arm: str
    shape: Shape
    start: int
    dim: int
    axes: tuple[str, ...]
    delta: bool

    @property
    def stop(self) -> int:
        """The action dimension after the last."""
        return self.start + self.dim

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Lowest and highest value of each axis; radians for theta and phi, else normalised."""
        if self.shape == "sphere":
            return tuple(RANGES[axis] for axis in TRANSLATION_AXES)
        return tuple((-1.0, 1.0) for _ in self.axes)

    @property
    def default_bins(self) -> tuple[int, ...]:
        """Bins of each axis; 2 for a switch."""
        if self.shape == "lines" and self.dim == 1:
            return (LINE_BINS,)
        return _DEFAULT_BINS[self.shape]

    @property
    def zero_axes(self) -> tuple[str, ...]:
        """Axes on which no motion is 0: the length of a translation, every line of a delta."""
        if not self.delta or self.shape == "switch":
            return ()
        return self.axes[2:] if self.shape == "sphere" else self.axes

    def values(self, actions: F64) -> dict[str, F64]:
        """Normalised actions (n, dim of the space) to the value on each axis, (n,) each."""
        columns = actions[:, self.start : self.stop]
        if self.shape == "sphere":
            return dict(zip(self.axes, spherical_from_xyz(columns), strict=True))
        return {axis: columns[:, i] for i, axis in enumerate(self.axes)}


@lru_cache(maxsize=64)
def slots_of(space: ActionSpace) -> tuple[Slot, ...]:
    """The slots of an action space, in the order of its groups.

    ValueError if two dimensions, slots or axes would have the same name.
    """
    slots: list[Slot] = []
    start = 0
    for group in space.groups:
        prefix = f"{group.arm}_" if group.arm else ""
        if group.role == "translation" and group.dim == 3:
            axes = tuple(prefix + axis for axis in TRANSLATION_AXES)
            parts = [(prefix + group.role, "sphere", start, 3, axes)]
        elif group.role == "rotation" and group.dim == 3:
            axes = tuple(prefix + axis for axis in ROTATION_AXES)
            parts = [(prefix + group.role, "lines", start, 3, axes)]
        else:
            switch = group.role == "gripper"
            parts = [
                (name, "switch" if switch else "lines", start + i, 1, () if switch else (name,))
                for i, name in enumerate(group.names)
            ]
        for name, shape, first, dim, axes in parts:
            slots.append(Slot(name, group.role, group.arm, shape, first, dim, axes, group.delta))  # type: ignore[arg-type]
        start += group.dim
    for what, names in (
        ("dimensions", list(space.names)),
        ("slots", [slot.name for slot in slots]),
        ("axes", [axis for slot in slots for axis in slot.axes]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"the action space has several {what} called {twice}; give every arm a name of its "
                "own (ActionGroup.arm) and every dimension too (ActionGroup.names)"
            )
    if not slots:
        raise ValueError("the action space has no groups; it needs at least one")
    return tuple(slots)


def axis_ranges(slots: Sequence[Slot]) -> dict[str, tuple[float, float]]:
    """{axis: (lowest, highest)} of all slots, in order."""
    return {a: limits for slot in slots for a, limits in zip(slot.axes, slot.ranges, strict=True)}


def axis_values(actions: F64, slots: Sequence[Slot]) -> dict[str, F64]:
    """Normalised actions (n, dim) to the value of every binned axis, (n,) each."""
    return {axis: column for slot in slots for axis, column in slot.values(actions).items()}


def fitted_values(actions: F64, slots: Sequence[Slot]) -> dict[str, F64]:
    """As `axis_values`, but without the directions of translations that do not translate."""
    values = axis_values(actions, slots)
    for slot in slots:
        if slot.shape == "sphere":
            moving = values[slot.axes[2]] > 0
            values |= {axis: values[axis][moving] for axis in slot.axes[:2]}
    return values


def check_bins(bins: Any, slots: Sequence[Slot]) -> tuple[int, ...]:
    """A count per axis and 2 per switch, in the order of the slots; None gives the defaults."""
    if bins is None:
        return tuple(n for slot in slots for n in slot.default_bins)
    counts = tuple(int(n) for n in bins)
    names = [name for slot in slots for name in (slot.axes or (slot.name,))]
    if len(counts) != len(names):
        default = tuple(n for slot in slots for n in slot.default_bins)
        raise ValueError(
            f"bins needs {len(names)} counts, one each for {', '.join(names)}; got {counts}. "
            f"The default is {default}"
        )
    switches = {slot.name for slot in slots if slot.shape == "switch"}
    for index, (name, n, given) in enumerate(zip(names, counts, bins, strict=True)):
        if n != given or n < 1:
            raise ValueError(f"bins[{index}] ({name}) must be a positive whole number, got {given}")
        if name in switches and n != 2:
            raise ValueError(
                f"bins[{index}] ({name}) must be 2, closed and open, got {n}; "
                "a gripper with more positions needs a head that regresses it"
            )
    return counts


def check_actions(actions: Any, space: ActionSpace, what: str = "actions") -> F64:
    """Float64 copy or view (n, dim); ValueError on a wrong shape, NaN or infinity.

    A single action (dim,) counts as one row.
    """
    array = np.asarray(actions, dtype=np.float64)
    dim = space.dim
    if array.ndim == 1 and array.shape[0] == dim:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(
            f"{what} must have shape (n, {dim}) for {', '.join(space.names)}; got {array.shape}. "
            f"Reshape chunks (B, T, {dim}) to (B * T, {dim}), and pad or drop nothing"
        )
    if not np.isfinite(array).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(
            f"{what}[{row}, {column}] ({space.names[column]}) is {array[row, column]}; an action "
            "must be finite. Look at the recording around this step, or drop the episode"
        )
    return array


def slot_totals(slots: Sequence[Slot], bins: Sequence[int]) -> tuple[int, ...]:
    """Token ids of each slot: the product of its counts."""
    totals, at = [], 0
    for slot in slots:
        width = max(1, len(slot.axes))
        totals.append(math.prod(bins[at : at + width]))
        at += width
    return tuple(totals)


def per_axis(bins: Any, slots: Sequence[Slot]) -> dict[str, int]:
    """{axis: count} from counts in the order of the slots, grippers included."""
    counts = iter(check_bins(bins, slots))
    return {name: next(counts) for slot in slots for name in slot.axes or (slot.name,)}


def zero_axes(slots: Sequence[Slot]) -> tuple[str, ...]:
    """Axes with a zero bin; ValueError if 0 means nothing special on any."""
    axes = tuple(axis for slot in slots for axis in slot.zero_axes)
    if not axes:
        raise ValueError(
            "zero_bin is set, but no group of the action space is a change per step "
            "(ActionGroup.delta), so 0 does not mean no motion; leave zero_bin off"
        )
    return axes


def some_actions(actions: Any, space: ActionSpace) -> F64:
    """Checked, clipped to [-1, 1], and at least one row."""
    array = check_actions(actions, space)
    if len(array) == 0:
        raise ValueError("actions has no rows; bins from data need at least one action")
    return np.asarray(np.clip(array, -1.0, 1.0))
