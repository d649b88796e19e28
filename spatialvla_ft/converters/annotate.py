"""Points of a whole dataset found in hindsight: which columns say where the tool was, and when.

What an episode tells stands in `hindsight.py`; here are the card, the errors and the account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.transform import Rotation

from spatialvla_ft.converters.hindsight import (
    By,
    Following,
    Gripping,
    Hindsight,
    following,
    in_hindsight,
    with_offset,
)
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.standardise import Standardised, standardise, wanted_keys
from spatialvla_ft.data.cards.terms import Term
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.sampler import evenly_spaced
from spatialvla_ft.data.store import EpisodeStore

ENOUGH = 0.5
"""Correlation from which on commands are taken to move the tool in the base frame."""
ASKED = 200
"""Episodes that are asked how the tool follows its commands."""


@dataclass(frozen=True)
class Settings:
    """How points are found.

    Attributes:
        by: which events give points, see `in_hindsight`.
        gripping: when the gripper changes.
        offset: of the point from the tool's position, in the tool's frame, metres.
        tool: where the tool is: x, y, z in metres in the base frame, and with an offset its turn
            after it, roll, pitch, yaw or a quaternion x, y, z, w; the card's proprioception if
            not given.
    """

    by: By = "auto"
    gripping: Gripping = field(default_factory=Gripping)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tool: Term | None = None


@dataclass
class Account:
    """What was found.

    Attributes:
        episodes, steps: of the dataset.
        with_point: steps that have a point.
        closings, releases, ends: events that gave a point.
        nothing: reason -> the episodes in which nothing was found.
        followed: how the tool follows its commands; None where the action moves no hand.
        end_moved: whether the last action's motion was added where an episode ends in contact.
    """

    episodes: int = 0
    steps: int = 0
    with_point: int = 0
    closings: int = 0
    releases: int = 0
    ends: int = 0
    nothing: dict[str, list[int]] = field(default_factory=dict)
    followed: Following | None = None
    end_moved: bool = False

    @property
    def found(self) -> int:
        """Episodes in which something was found."""
        return self.episodes - sum(map(len, self.nothing.values()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        raw = {k: v for k, v in vars(self).items() if k != "followed"}
        return {**raw, "found": self.found, "followed": self.followed and vars(self.followed)}


def find_points(
    store: EpisodeStore,
    card: Card,
    settings: Settings,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Float32[np.ndarray, "T 3"]], Account]:
    """A point for every stored step of every episode, NaN where there is none.

    Args:
        store: the dataset.
        card: how to read it.
        settings: how points are found.
        progress: called with the number of episodes done.

    Raises:
        DatasetError: nothing says where the tool is, or which gripper counts.
    """
    reader = _Reader(store, card, settings)
    account = Account(episodes=len(store.episode_lengths))
    commands = reader.follow()
    if commands is not None:
        account.followed, account.end_moved = commands, commands.correlation >= ENOUGH
    gain = commands.gain if commands is not None and account.end_moved else None
    points = []
    for episode, length in enumerate(store.episode_lengths.tolist()):
        trajectory = reader.read(episode)
        found = reader.hindsight(trajectory, gain)
        points.append(_at_stored_steps(found, trajectory, length))
        _count(account, found, points[-1], episode)
        if progress is not None:
            progress(episode + 1)
    return points, account


def _count(
    account: Account, found: Hindsight, points: Float32[np.ndarray, "T 3"], episode: int
) -> None:
    account.steps += len(points)
    account.with_point += int(np.isfinite(points).all(axis=1).sum())
    kinds = Counter(event.kind for event in found.events)
    account.closings += kinds["close"]
    account.releases += kinds["open"]
    account.ends += kinds["end"]
    if found.why:
        account.nothing.setdefault(found.why, []).append(episode)


def _at_stored_steps(
    found: Hindsight, trajectory: _Trajectory, length: int
) -> Float32[np.ndarray, "T 3"]:
    """Points of all stored steps: those that the card drops share the nearest one's."""
    if not len(found.points):
        return np.full((length, 3), np.nan, np.float32)
    kept = trajectory.standard.steps
    row = np.searchsorted(kept, np.arange(length), side="right") - 1
    return found.points[np.clip(row, 0, len(kept) - 1)]


@dataclass(frozen=True)
class _Trajectory:
    """Standard steps of an episode, and where the tool is at each: (T, 3), metres, base frame.

    `place` is what the points are made of, `tool` moved by the offset.
    """

    standard: Standardised
    tool: Float64[np.ndarray, "T 3"]
    place: Float64[np.ndarray, "T 3"]


class _Reader:
    """Reads episodes as they are needed here; finds at once what is missing."""

    def __init__(self, store: EpisodeStore, card: Card, settings: Settings) -> None:
        self.store, self.card, self.settings = store, card, settings
        _check_tool(card, settings.tool)
        if settings.tool is not None and settings.tool.path is not None:
            store.check_column(settings.tool.path)
        grippers = card.action.gripper_terms
        if settings.by != "contact" and (len(grippers) > 1 or card.action.arms is not None):
            raise DatasetError(
                f"card {card.name!r} has {len(grippers)} grippers, so which of them acts is not "
                "known; use --by contact with the --tool-position of one arm, or write a card for "
                "one arm"
            )
        self.has_gripper = len(grippers) == 1 and card.action.arms is None
        own = (settings.tool.path,) if settings.tool is not None and settings.tool.path else ()
        self.keys = tuple(dict.fromkeys((*wanted_keys(card), *own)))

    def read(self, episode: int) -> _Trajectory:
        """Standard steps and the tool's places."""
        columns = self.store.trajectory(episode, self.keys)
        standard = standardise(self.card, columns)
        if self.settings.tool is None:
            assert standard.proprio is not None
            pose = standard.proprio.astype(np.float64)
            kind = self.card.proprio and self.card.proprio.encoding
            turn = {"POS_EULER": 6, "POS_QUAT": 7}[kind or ""]
        else:
            count = len(next(iter(columns.values())))
            term = self.settings.tool.evaluate(columns, count)
            pose = term.reshape(count, -1)[standard.steps].astype(np.float64)
            turn = pose.shape[1]
            if turn not in (3, 6, 7):
                raise DatasetError(
                    f"--tool-position {self.settings.tool} is {turn} wide; allowed are 3 (x, y, "
                    "z), 6 (and roll, pitch, yaw) and 7 (and a quaternion x, y, z, w): add a "
                    "slice, e.g. observation.state[0:3]"
                )
        tool = pose[:, :3]
        place = tool
        if any(self.settings.offset):
            place = _moved(pose, turn, np.array(self.settings.offset))
        return _Trajectory(standard, tool, place)

    def hindsight(self, trajectory: _Trajectory, gain: float | None) -> Hindsight:
        """What an episode tells; with a gain the last action's motion counts."""
        end = None
        if len(trajectory.place) and gain is not None:
            end = trajectory.place[-1] + gain * self._commanded(trajectory)[-1]
        action = trajectory.standard.action
        opening = action[:, -1] if self.has_gripper else None
        return in_hindsight(
            trajectory.place, opening, end, self.settings.by, self.settings.gripping
        )

    def follow(self) -> Following | None:
        """How the tool follows its commands; None where the action does not move one hand."""
        if self.card.action.translation is None:
            return None
        count = len(self.store.episode_lengths)
        moved, commanded = [np.empty((0, 3))], [np.empty((0, 3))]
        for trajectory in map(self.read, evenly_spaced(count, ASKED)):
            if len(trajectory.tool) > 1:
                moved.append(np.diff(trajectory.tool, axis=0))
                commanded.append(self._commanded(trajectory)[:-1])
        return following(np.concatenate(moved), np.concatenate(commanded))

    def _commanded(self, trajectory: _Trajectory) -> Float64[np.ndarray, "T 3"]:
        """Translation of every action; of an absolute one, the way to there."""
        action = trajectory.standard.action[:, :3].astype(np.float64)
        delta = self.card.action_space.groups[0].delta
        return action if delta else action - trajectory.tool


def _check_tool(card: Card, tool: Term | None) -> None:
    """DatasetError unless the card, or a term, says where the tool is."""
    cure = (
        "give the column with its x, y, z in metres in the robot's base frame: --tool-position "
        "'observation.state[0:3]'"
    )
    if tool is not None:
        return
    if card.proprio is None:
        raise DatasetError(
            f"card {card.name!r} names no proprioception, so nothing says where the tool is; add "
            "proprio: {encoding: POS_EULER, terms: [...]} to it, or " + cure
        )
    encoding = card.proprio.encoding
    if encoding in ("JOINT", "JOINT_BIMANUAL"):
        raise DatasetError(
            f"card {card.name!r} has proprioception in joint space ({encoding}), which does not "
            f"say where the tool is; {cure}"
        )
    if encoding not in ("POS_EULER", "POS_QUAT"):
        raise DatasetError(
            f"card {card.name!r} does not say what its proprioception is (encoding {encoding}); "
            f"write POS_EULER or POS_QUAT if it starts with x, y, z, or {cure}"
        )


def _moved(
    pose: Float64[np.ndarray, "T n"], turn: int, offset: Float64[np.ndarray, 3]
) -> Float64[np.ndarray, "T 3"]:
    """Positions of a point fixed to the tool; NaN where its turn is not known.

    Args:
        pose: x, y, z, then roll, pitch, yaw (turn 6) or a quaternion x, y, z, w (turn 7).
        turn: columns of the pose.
        offset: of the point, tool frame, metres.
    """
    if turn == 3 or pose.shape[1] < turn:
        raise DatasetError(
            "an offset is in the tool's frame, but nothing says how the tool is turned; give "
            "--tool-position a term of 6 (x, y, z, roll, pitch, yaw) or 7 columns (x, y, z and a "
            "quaternion x, y, z, w), or leave --offset out"
        )
    known = np.isfinite(pose[:, :turn]).all(axis=1)
    if turn == 7:
        known &= np.linalg.norm(pose[:, 3:7], axis=1) > 0.5
    found = np.full((len(pose), 3), np.nan)
    if known.any():
        angles = pose[known, 3:turn]
        rotation = Rotation.from_euler("xyz", angles) if turn == 6 else Rotation.from_quat(angles)
        found[known] = with_offset(pose[known, :3], rotation, offset)
    return found


def segments(points: Float32[np.ndarray, "T 3"]) -> Iterator[int]:
    """First step of every stretch with one and the same point."""
    for step in range(len(points)):
        fresh = step == 0 or (points[step] != points[step - 1]).any()
        if fresh and np.isfinite(points[step]).all():
            yield step
