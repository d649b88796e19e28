"""The parts of a dataset card that stand for themselves: words, drops, changes, cameras."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from spatialvla_ft.data.terms import Term, parse_term


def _term(raw: Any) -> Any:
    return raw if isinstance(raw, Term) else parse_term(raw)


TermField = Annotated[Any, BeforeValidator(_term)]
Slot = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class CardModel(BaseModel):
    """A part of a card: nothing unknown in it, and fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Language(CardModel):
    """Where the instruction lies and how it is written."""

    kind: Literal["string", "string_array", "utf8_codepoints", "none"] = "string"
    key: str | None = "language_instruction"
    end: Literal["nul"] | None = None
    uninformative: bool = False


class Drop(CardModel):
    """Steps removed before anything else."""

    first: int = Field(default=0, ge=0)


class Relabel(CardModel):
    """Action dimensions replaced by a change.

    `next_minus_current`: of the state until the next step; the last step is dropped then.
    `target_minus_current`: from the state's pose to the pose that the action commands, both
    x, y, z, roll, pitch, yaw in the robot's base.
    """

    dims: tuple[int, int]
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
    dims: tuple[int, int]
    tol: float
    q01: list[float]
    q99: list[float]


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
