"""A dataset card: how the columns of a dataset become one standard step, as data.

The format is described in `data_mixtures/README.md`; `cards.load_cards` reads and checks it.

What a dataset card says of the action: one arm, joints, or several arms by name.

The parts of a dataset card that stand for themselves: words, drops, changes, cameras.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
from jaxtyping import Float64
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from spatialvla_ft.actions.spaces import (
    ActionGroup,
    ActionSpace,
    arms_delta,
    end_effector_delta,
    translation_delta,
)
from spatialvla_ft.data.cards.terms import Term, parse_term
from spatialvla_ft.data.errors import DatasetError


def _term(raw: Any) -> Any:
    return raw if isinstance(raw, Term) else parse_term(raw)


def _dims(found: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= found[0] < found[1]:
        raise ValueError(f"[a, b] are columns a to b - 1, 0 <= a < b; got {list(found)}")
    return found


TermField = Annotated[Any, BeforeValidator(_term)]
Dims = Annotated[tuple[int, int], AfterValidator(_dims)]
RECORDED = "recorded"
"""Of a checkpoint's `processor_config.json`: {dataset: how it was recorded}, see `Recorded`."""
CONTROL_HZ = "control_hz"
"""Of the same file: {dataset: actions per second}, where its card says."""
Slot = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class CardModel(BaseModel):
    """A part of a card: nothing unknown in it, and fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Language(CardModel):
    """Where the instruction lies and how it is written.

    Of several sentences in a step, in one column or in several, `first` takes the first that is not
    empty; with `drawn` training takes one of those that are not empty, drawn anew each time that
    the step comes, by the run's seed and the sample's number; all else takes the first.
    """

    kind: Literal["string", "string_array", "utf8_codepoints", "none"] = "string"
    key: str | tuple[str, ...] | None = "language_instruction"
    end: Literal["nul"] | None = None
    several: Literal["first", "drawn"] | None = None
    encoding: str = "utf-8"
    errors: Literal["strict", "replace"] = "strict"
    uninformative: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns with words, in order; none where the dataset has no words."""
        if self.kind == "none" or self.key is None:
            return ()
        return (self.key,) if isinstance(self.key, str) else self.key

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            b"a".decode(name, "replace")
        except LookupError:
            raise ValueError(
                f"{name!r} is no encoding of text; e.g. utf-8, latin-1, cp1252, utf-16, shift_jis"
            ) from None
        return name

    @model_validator(mode="after")
    def _keys_differ(self) -> Language:
        if len(set(self.keys)) < len(self.keys) or self.key == ():
            raise ValueError(f"key is a column or a list of different ones, got {list(self.keys)}")
        return self


class Drop(CardModel):
    """Steps removed before anything else."""

    first: int = Field(default=0, ge=0)


class Relabel(CardModel):
    """Action dimensions replaced by a change.

    `next_minus_current`: of the state until the next step; the last step is dropped then.
    `target_minus_current`: from the state's pose to the pose that the action commands, both
    x, y, z, roll, pitch, yaw in the robot's base.
    """

    dims: Dims
    source: TermField = Field(alias="from")
    rule: Literal["next_minus_current", "target_minus_current"]


class Proprio(CardModel):
    """Terms of the robot's state."""

    encoding: Literal["POS_EULER", "POS_QUAT", "JOINT", "JOINT_BIMANUAL", "NONE"] | None = None
    terms: list[TermField]


class MotionFilter(CardModel):
    """Drop a step if no action of its chunk moves: the normalised motion is below `tol`."""

    kind: Literal["drop_if_motion_is_zero"]
    stage: Literal["after_normalisation"]
    dims: Dims
    tol: float
    q01: list[float]
    q99: list[float]

    @model_validator(mode="after")
    def _one_each(self) -> MotionFilter:
        count = self.dims[1] - self.dims[0]
        if not len(self.q01) == len(self.q99) == count:
            raise ValueError(
                f"dims {list(self.dims)} are {count} columns, q01 has {len(self.q01)} numbers and "
                f"q99 {len(self.q99)}; give one for each"
            )
        return self


class Swap(CardModel):
    """Two cameras change places with probability `p`, for a whole trajectory."""

    swap: tuple[Slot, Slot]
    p: float = Field(ge=0, le=1)
    scope: Literal["trajectory"]


class Video(CardModel):
    """How the frames of a LeRobot dataset's videos are found.

    `time`: by the time stamp of a row or by its frame_index; None takes only rows for which both
    say the same. `shared`: whether episodes may have frames of a video in common.
    """

    time: Literal["timestamp", "frame_index"] | None = None
    shared: bool = False


class Recorded(CardModel):
    """How a simulation recorded a dataset: what an evaluation under the same conditions needs."""

    robot: str
    tasks: list[str] = Field(min_length=1)
    camera_mode: str
    cameras: list[str] = Field(min_length=1)
    image_size: int = Field(gt=0)
    distractors: list[int] = Field(min_length=1)
    """Blocks that no task names; the episode of seed s has those at place s modulo their count."""
    action_noise: float = Field(ge=0)
    """On executed actions, as a share of the robot's largest step."""
    seeds: tuple[int, int]
    """First and last of the attempts, failed ones included."""


class Intrinsics(CardModel):
    """Pinhole camera in pixels of a `width` x `height` image; pixel centres at +0.5."""

    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    grade: str | None = None
    source: str | None = None

    def matrix(self, width: int, height: int) -> Float64[np.ndarray, "3 3"]:
        """K for the same picture squashed to `width` x `height`."""
        x, y = width / self.width, height / self.height
        return np.array(
            [[self.fx * x, 0, self.cx * x], [0, self.fy * y, self.cy * y], [0, 0, 1]], np.float64
        )


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
