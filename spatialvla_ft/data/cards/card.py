"""A dataset card: how the columns of a dataset become one standard step, as data.

The format is described in `data_mixtures/README.md`; `cards.load_cards` reads and checks it.

What a card says of the action, one arm, joints, or several arms by name, and the card as a whole;
its other parts are in `fields`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import pydantic
from pydantic import Field

from spatialvla_ft.actions.spaces import (
    ActionGroup,
    ActionSpace,
    arms_delta,
    end_effector_delta,
    translation_delta,
)
from spatialvla_ft.data.cards.fields import (
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
from spatialvla_ft.data.cards.terms import Term
from spatialvla_ft.data.errors import DatasetError


class RotationTerms(CardModel):
    """Terms that are 3 wide together, and what the raw numbers are."""

    raw: Literal[
        "labelled_euler",
        "euler_state_diff",
        "axis_angle",
        "quat_xyzw",
        "wrist_angle_only",
        "zero",
        "rot6d",
    ]
    terms: list[TermField]


class Group(NamedTuple):
    """Terms of an action that belong together: their line in the card, and columns in all."""

    name: str
    terms: list[Term]
    width: int | None


class Arm(CardModel):
    """Terms of one of several arms: translation, rotation if its hand turns, gripper 1 = open."""

    translation: list[TermField]
    rotation: RotationTerms | None = None
    gripper: list[TermField]


class Action(CardModel):
    """Terms of the action.

    One arm has translation, rotation (unless its hand cannot turn) and gripper, 1 = open; a robot
    driven by its joints has joints, and a gripper if there is one; several arms stand by name.
    """

    encoding: Literal["EEF_POS", "EEF_R6", "JOINT_POS", "JOINT_POS_BIMANUAL"] = "EEF_POS"
    loadable: bool = True
    translation: list[TermField] | None = None
    rotation: RotationTerms | None = None
    joints: list[TermField] | None = None
    gripper: list[TermField] | None = None
    arms: dict[Slot, Arm] | None = None
    reference: Literal["delta", "absolute"] | None = None
    joint_names: list[str] | None = None
    joint_unit: str = "rad"

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Action:
        kinds = [k for k in ("translation", "joints", "arms") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"an action has exactly one of translation, joints and arms, got {kinds or 'none'}"
            )
        if self.translation is not None and not self.gripper:
            raise ValueError("an arm that moves by translation needs its gripper terms")
        if self.translation is None and self.rotation is not None:
            raise ValueError("rotation belongs to translation, not to joints or named arms")
        if self.arms is not None and self.gripper:
            raise ValueError("each arm of arms has its own gripper; remove action.gripper")
        if self.joints is not None and len(self.gripper or []) > 2:
            raise ValueError(f"joints drive up to two grippers, got {len(self.gripper or [])}")
        if self.joints is None and self.encoding.startswith("JOINT"):
            raise ValueError(f"encoding {self.encoding} goes with joints; a hand has EEF_POS")
        for rotation in [self.rotation, *(arm.rotation for arm in (self.arms or {}).values())]:
            if rotation and (self.encoding == "EEF_R6") != (rotation.raw == "rot6d"):
                raise ValueError(
                    f"encoding {self.encoding} with a rotation of kind {rotation.raw}; EEF_R6 "
                    "goes with rot6d, 6 columns, and only with it"
                )
        return self

    @property
    def is_delta(self) -> bool:
        """Whether 0 means no motion; unless the card says, hands move by deltas, joints do not."""
        return self.joints is None if self.reference is None else self.reference == "delta"

    @property
    def gripper_terms(self) -> list[Term]:
        """The grippers in the order of the action."""
        if self.arms is not None:
            return [term for arm in self.arms.values() for term in arm.gripper]
        return list(self.gripper or [])

    @property
    def rotation_terms(self) -> list[Term]:
        """The rotations in the order of the action."""
        kinds = [self.rotation, *(arm.rotation for arm in (self.arms or {}).values())]
        return [term for rotation in kinds if rotation for term in rotation.terms]

    @property
    def terms(self) -> list[Term]:
        """All terms in the order of the action."""
        return [term for group in self.groups for term in group.terms]

    @property
    def groups(self) -> list[Group]:
        """Terms that are so many columns together, in the order of the action."""
        turn = 6 if self.encoding == "EEF_R6" else 3
        if self.arms is not None:
            return [
                group
                for name, arm in self.arms.items()
                for group in _hand(
                    f"arms.{name}.", arm.translation, arm.rotation, arm.gripper, turn
                )
            ]
        gripper = list(self.gripper or [])
        if self.joints is not None:
            return [Group("joints", list(self.joints), None), *_grippers("", gripper)]
        return _hand("", self.translation or [], self.rotation, gripper, turn)


def _hand(
    prefix: str,
    translation: list[Term],
    rotation: RotationTerms | None,
    gripper: list[Term],
    turn: int,
) -> list[Group]:
    groups = [Group(f"{prefix}translation", list(translation), 3)]
    if rotation is not None:
        groups.append(Group(f"{prefix}rotation", list(rotation.terms), turn))
    return groups + _grippers(prefix, gripper)


def _grippers(prefix: str, terms: list[Term]) -> list[Group]:
    return [Group(f"{prefix}gripper", [term], 1) for term in terms]


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
