"""The parts of a dataset card that stand for themselves, and the kinds of value in them.

Words, dropped and relabelled steps, proprioception, filters, cameras that change places, videos,
how a simulation recorded the data, and pinhole cameras. What the action says is in `card`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from spatialvla_ft.data.cards.terms import Term, parse_term
from spatialvla_ft.geometry.intrinsics import camera_matrix, scale_intrinsics


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
    expert: str | None = None
    """Which of a task's experts demonstrated; None where it has one."""

    @model_serializer(mode="wrap")
    def _as_written(self, write: Any) -> Any:
        """Without an expert where there is one only, so that cards read and hash as before."""
        content = write(self)
        if content.get("expert") is None:
            content.pop("expert", None)
        return content


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
        K = camera_matrix((self.fx, self.fy, self.cx, self.cy), "a card's intrinsics")
        return scale_intrinsics(K, width / self.width, height / self.height)
