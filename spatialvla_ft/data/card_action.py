"""What a dataset card says of the action: one arm, joints, or several arms by name."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pydantic

from spatialvla_ft.data.card_fields import CardModel, Slot, TermField
from spatialvla_ft.data.terms import Term


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
