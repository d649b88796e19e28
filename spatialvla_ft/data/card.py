"""A dataset card: how the columns of a dataset become one standard step, as data.

The format is described in `data_mixtures/README.md`; `cards.load_cards` reads and checks it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pydantic
from pydantic import Field

from spatialvla_ft.actions.spaces import (
    ActionGroup,
    ActionSpace,
    arms_delta,
    end_effector_delta,
    translation_delta,
)
from spatialvla_ft.data.card_action import Action
from spatialvla_ft.data.card_fields import (
    CardModel,
    Drop,
    Intrinsics,
    Language,
    MotionFilter,
    Proprio,
    Recorded,
    Relabel,
    Slot,
    Swap,
    TermField,
    Video,
)
from spatialvla_ft.data.errors import DatasetError


class Template(CardModel):
    """A card without cameras, for datasets that a user brings."""

    action: Action
    proprio: Proprio | None = None


class Card(CardModel):
    """How one dataset becomes standard steps. `source_hash` is of the card's own text."""

    name: str
    version: str
    robot: str | None = None
    robot_src: str | None = None
    control_hz: float | None = Field(None, gt=0)
    hz_src: str | None = None
    cameras: dict[Slot, TermField] | None = None
    depth: dict[Slot, TermField] = Field({})
    depth_scale: float | None = Field(None, gt=0)
    intrinsics: dict[Slot, str | Intrinsics] = Field({})
    extrinsics: dict[Slot, str] = Field({})
    target_point: str | None = None
    reference_point: str | None = None
    video: Video = Video()
    language: Language = Language()
    drop: Drop = Drop()
    action: Action
    relabel: Relabel | None = None
    proprio: Proprio | None = None
    filters: list[MotionFilter] = Field([])
    augment: list[Swap] = Field([])
    recorded: Recorded | None = None
    offline: dict[str, Any] | None = None
    variants: dict[str, dict[str, Any]] = Field({})
    licence: str | None = None
    notes: list[str] = Field([])
    source_hash: str = ""

    @pydantic.model_validator(mode="after")
    def _slots_are_cameras(self) -> Card:
        have = set(self.cameras or {})
        for field in ("depth", "intrinsics", "extrinsics"):
            unknown = set(getattr(self, field)) - have
            if unknown:
                raise ValueError(
                    f"{field} for {sorted(unknown)}, but the cameras are {sorted(have)}"
                )
        for rule in self.augment:
            if not set(rule.swap) <= have or len(set(rule.swap)) < 2:
                raise ValueError(
                    f"augment swaps {list(rule.swap)}; it takes two of the cameras {sorted(have)}"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _relabel_fits(self) -> Card:
        action, relabel = self.action, self.relabel
        one_arm = action.translation is not None and action.rotation is not None
        one_arm = one_arm and action.encoding != "EEF_R6"
        whole = relabel is not None and relabel.dims == (0, 6) and one_arm
        if relabel and relabel.rule == "target_minus_current" and (action.is_delta or not whole):
            raise ValueError(
                "relabel: target_minus_current needs an end-effector action with reference: "
                f"absolute and dims: [0, 6]; got dims {list(relabel.dims)}, "
                f"{'delta' if action.is_delta else 'absolute'} {action.encoding}"
            )
        if relabel and not action.is_delta and action.joints is None and not whole:
            raise ValueError("relabel of an absolute pose must replace all of it, dims: [0, 6]")
        return self

    @property
    def points(self) -> dict[str, str]:
        """Columns of the points that instructions name, by the field of a sample."""
        named = {"target_point": self.target_point, "reference_point": self.reference_point}
        return {field: key for field, key in named.items() if key is not None}

    @property
    def lost_steps(self) -> int:
        """Steps every episode loses: those dropped, and the last if its action needs one more."""
        return self.drop.first + (
            self.relabel is not None and self.relabel.rule == "next_minus_current"
        )

    @property
    def action_space(self) -> ActionSpace:
        """Names, units and frames of the standard action."""
        if self.action.joints is None:
            space = self._hands
            if self.action.encoding == "EEF_R6":
                space = _six_numbers(space)
            if self.action.is_delta or self.relabel is not None:
                return space
            groups = tuple(dataclasses.replace(group, delta=False) for group in space.groups)
            return dataclasses.replace(space, groups=groups)
        raise DatasetError(
            f"card {self.name!r}: the action is in joint space ({self.action.encoding}); "
            "action_space_of(dim) names its joints"
        )

    @property
    def _hands(self) -> ActionSpace:
        arms = self.action.arms
        if arms is not None:
            turns = {name: arm.rotation is not None for name, arm in arms.items()}
            return arms_delta(turns, self.control_hz)
        make = end_effector_delta if self.action.rotation is not None else translation_delta
        return make(self.control_hz)

    def action_space_of(self, dim: int) -> ActionSpace:
        """The action space when the action is `dim` wide; unnamed joints are counted from 1."""
        if self.action.joints is None:
            return self.action_space
        hands = len(self.action.gripper_terms)
        count = dim - hands
        names = self.action.joint_names or [f"joint_{i}" for i in range(1, count + 1)]
        if len(names) != count:
            raise DatasetError(
                f"card {self.name!r}: joint_names has {len(names)} names, the action {count} "
                "joints; mend joint_names or the slices"
            )
        arm = ActionGroup(
            "joint", tuple(names), self.action.joint_unit, "joint", delta=self.action.is_delta
        )
        labels = ("left_gripper", "right_gripper") if hands == 2 else ("gripper",) * hands
        grippers = (
            ActionGroup("gripper", (label,), "1 = open, 0 = closed", "absolute") for label in labels
        )
        return ActionSpace((arm, *grippers), self.control_hz)


def _six_numbers(space: ActionSpace) -> ActionSpace:
    """The rotation as the first two columns of its matrix; the identity is not all zeros."""

    def six(group: ActionGroup) -> ActionGroup:
        prefix = f"{group.arm}_" if group.arm else ""
        names = tuple(f"{prefix}r{i}" for i in range(1, 7))
        return dataclasses.replace(group, names=names, unit="1", delta=False)

    groups = (six(group) if group.role == "rotation" else group for group in space.groups)
    return dataclasses.replace(space, groups=tuple(groups))
