"""Dataset cards: how the columns of a dataset become one standard step, as data.

The format is described in `data_mixtures/README.md`; a card is checked whole when it is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pydantic
from jaxtyping import Float64
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from spatialvla_ft.actions.spaces import (
    ActionGroup,
    ActionSpace,
    arms_delta,
    end_effector_delta,
    translation_delta,
)
from spatialvla_ft.data.card_yaml import Located, load_yaml
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.terms import Term, parse_term

SCHEMA_VERSION = 1


def _term(raw: Any) -> Any:
    return raw if isinstance(raw, Term) else parse_term(raw)


TermField = Annotated[Any, BeforeValidator(_term)]
Slot = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Language(_Model):
    """Where the instruction lies and how it is written."""

    kind: Literal["string", "string_array", "utf8_codepoints", "none"] = "string"
    key: str | None = "language_instruction"
    end: Literal["nul"] | None = None
    uninformative: bool = False


class Drop(_Model):
    """Steps removed before anything else."""

    first: int = Field(default=0, ge=0)


class RotationTerms(_Model):
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


class Arm(_Model):
    """Terms of one of several arms: translation, rotation if its hand turns, gripper 1 = open."""

    translation: list[TermField]
    rotation: RotationTerms | None = None
    gripper: list[TermField]

    @property
    def terms(self) -> list[Term]:
        """All terms in the order of the action."""
        return [*self.translation, *(self.rotation or _NO_TERMS).terms, *self.gripper]


class Action(_Model):
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
        if self.arms is not None:
            return [term for arm in self.arms.values() for term in arm.terms]
        arm = self.joints or [*(self.translation or []), *(self.rotation or _NO_TERMS).terms]
        return [*arm, *(self.gripper or [])]


_NO_TERMS = RotationTerms(raw="zero", terms=[])


class Relabel(_Model):
    """Action dimensions replaced by a change.

    `next_minus_current`: of the state until the next step; the last step is dropped then.
    `target_minus_current`: from the state's pose to the pose that the action commands, both
    x, y, z, roll, pitch, yaw in the robot's base.
    """

    dims: tuple[int, int]
    source: TermField = Field(alias="from")
    rule: Literal["next_minus_current", "target_minus_current"]


class Proprio(_Model):
    """Terms of the robot's state."""

    encoding: Literal["POS_EULER", "POS_QUAT", "JOINT", "JOINT_BIMANUAL", "NONE"] | None = None
    terms: list[TermField]


class MotionFilter(_Model):
    """Drop a step if no action of its chunk moves: the normalised motion is below `tol`."""

    kind: Literal["drop_if_motion_is_zero"]
    stage: Literal["after_normalisation"]
    dims: tuple[int, int]
    tol: float
    q01: list[float]
    q99: list[float]


class Swap(_Model):
    """Two cameras change places with probability `p`, for a whole trajectory."""

    swap: tuple[Slot, Slot]
    p: float = Field(ge=0, le=1)
    scope: Literal["trajectory"]


class Intrinsics(_Model):
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


class Template(_Model):
    """A card without cameras, for datasets that a user brings."""

    action: Action
    proprio: Proprio | None = None


class Card(_Model):
    """How one dataset becomes standard steps. `source_hash` is of the card's own text."""

    name: str
    version: str
    robot: str | None = None
    robot_src: str | None = None
    control_hz: float | None = Field(None, gt=0)
    hz_src: str | None = None
    cameras: dict[Slot, TermField] | None = None
    depth: dict[Slot, TermField] = {}
    depth_scale: float | None = Field(None, gt=0)
    intrinsics: dict[Slot, str | Intrinsics] = {}
    extrinsics: dict[Slot, str] = {}
    language: Language = Language()
    drop: Drop = Drop()
    action: Action
    relabel: Relabel | None = None
    proprio: Proprio | None = None
    filters: list[MotionFilter] = []
    augment: list[Swap] = []
    offline: dict[str, Any] | None = None
    variants: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
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


def load_cards(path: str | Path) -> dict[str, Card]:
    """All cards of a YAML file, checked.

    Raises:
        DatasetError: every mistake at once, each with file and line.
    """
    path = Path(path)
    document = load_yaml(path)
    content = document.value
    if not isinstance(content, dict) or not isinstance(content.get("cards"), dict):
        raise DatasetError(f"{path}: a card file has schema_version and cards: {{<name>: <card>}}")
    problems = []
    allowed = {"schema_version", "defaults", "cards", "templates"}
    problems += [
        f"{document.where((key,))}: unknown key {key!r}; allowed are {sorted(allowed)}"
        for key in content.keys() - allowed
    ]
    if content.get("schema_version") != SCHEMA_VERSION:
        problems.append(
            f"{document.where(('schema_version',))}: schema_version {content.get('schema_version')}"
            f" is not {SCHEMA_VERSION}"
        )
    defaults = content.get("defaults") or {}
    cards = {}
    for name, raw in content["cards"].items():
        if not isinstance(raw, dict):
            problems.append(f"{document.where(('cards', name))}: a card is a mapping, got {raw!r}")
            continue
        full = with_defaults(raw, defaults)
        digest = hashlib.sha256(json.dumps(full, sort_keys=True, default=str).encode()).hexdigest()
        try:
            cards[name] = Card.model_validate({**full, "name": name, "source_hash": digest})
        except pydantic.ValidationError as error:
            problems += _explain(error, document, ("cards", name))
    for name, raw in (content.get("templates") or {}).items():
        try:
            Template.model_validate(with_defaults(raw, {}))
        except pydantic.ValidationError as error:
            problems += _explain(error, document, ("templates", name))
    if problems:
        raise DatasetError("\n".join(problems))
    return cards


def with_defaults(raw: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Keys of `raw` win; the action is filled key by key, all else as a whole."""
    full = {**defaults, **raw}
    if isinstance(raw.get("action"), dict) and isinstance(defaults.get("action"), dict):
        full["action"] = {**defaults["action"], **raw["action"]}
    return full


def _suggest(key: str, parents: tuple[str | int, ...]) -> str:
    """The nearest name that is allowed there, as a question."""
    model: Any = Card
    for part in parents:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        kinds = [annotation, *get_args(annotation)]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            return ""
        model = inner[0]
    near = difflib.get_close_matches(key, list(model.model_fields), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _explain(
    error: pydantic.ValidationError, document: Located, prefix: tuple[str, ...]
) -> list[str]:
    lines = []
    for item in error.errors():
        location = (*prefix, *item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key" + _suggest(str(item["loc"][-1]), item["loc"][:-1])
        lines.append(f"{document.where(location)}: {'.'.join(map(str, location))}: {message}")
    return lines
