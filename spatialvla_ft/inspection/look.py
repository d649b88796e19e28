"""A whole look at a dataset: what it holds, its numbers, and every finding."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from spatialvla_ft.actions.spaces import ActionSpace
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.standardise import Standardised, standardise, wanted_keys
from spatialvla_ft.data.errors import DatasetError, in_episode
from spatialvla_ft.data.opening import find_card, open_source, pick_card
from spatialvla_ft.data.stats.statistics import normalised_dimensions
from spatialvla_ft.data.store import Field, Source
from spatialvla_ft.data.view import check_keys
from spatialvla_ft.inspection import episodes as episode_rules
from spatialvla_ft.inspection import gripper as gripper_rules
from spatialvla_ft.inspection import motion
from spatialvla_ft.inspection.cameras import View, view_cameras
from spatialvla_ft.inspection.draft import Draft, draft_card
from spatialvla_ft.inspection.findings import Finding, findings_of_files, worst_first
from spatialvla_ft.inspection.motion import degrees, quaternion_as_euler, wrapped_angles
from spatialvla_ft.inspection.points import PointColumn, look_at_points
from spatialvla_ft.inspection.series import Series, SourceFields, numeric_columns
from spatialvla_ft.inspection.tool_poses import PoseStream, pose_findings, pose_streams

EPISODES = 100
"""Episodes that are looked at unless another number is asked for."""
TIME_STAMPS = ("timestamp", "observation.timestamp", "time")


@dataclass(frozen=True)
class Inspection:
    """What was seen.

    Attributes:
        source: the dataset itself.
        card: how it was read.
        draft: the drafted card, or None where a card was given.
        split: which split, `num_episodes` and `num_steps` in it.
        episodes: numbers of the episodes that were looked at.
        all_lengths: steps of every episode of the split, before the card's drops.
        action: (N, d) standard actions of those episodes.
        raw_action: (N', k) the raw columns that the action is made of, by key.
        space: what the action's columns mean.
        q01, q99: (d,) of those actions.
        measured_hz: from time stamps, where there are any.
        words: instruction -> number of episodes that say it first.
        views: what each camera shows.
        poses: streams of tool poses, and whether they are absolute.
        points: columns of points that instructions name.
        findings: worst first.
    """

    source: Source
    card: Card
    draft: Draft | None
    split: str
    num_episodes: int
    num_steps: int
    episodes: tuple[int, ...]
    all_lengths: Int64[np.ndarray, " n"]
    action: Series
    raw_action: dict[str, Series]
    space: ActionSpace
    q01: Float64[np.ndarray, " d"]
    q99: Float64[np.ndarray, " d"]
    measured_hz: float | None
    words: Counter[str]
    views: dict[str, View]
    poses: tuple[PoseStream, ...]
    points: tuple[PointColumn, ...]
    findings: tuple[Finding, ...]

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.source.name}/{self.source.version}"

    @property
    def is_arm(self) -> Bool[np.ndarray, " d"]:
        """(d,) True for all but grippers."""
        return normalised_dimensions(self.space)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; no pictures."""
        values = self.action.values
        return {
            "dataset": self.source.name,
            "version": self.source.version,
            "format": self.source.format,
            "card": "drafted" if self.draft else self.card.name,
            "split": self.split,
            "episodes": self.num_episodes,
            "steps": self.num_steps,
            "inspected_episodes": len(self.episodes),
            "episode_lengths": {
                "min": int(self.all_lengths.min()),
                "median": float(np.median(self.all_lengths)),
                "max": int(self.all_lengths.max()),
            },
            "control_hz": self.card.control_hz,
            "measured_hz": self.measured_hz,
            "features": [field.to_dict() for field in self.source.fields],
            "cameras": {slot: view.to_dict() for slot, view in self.views.items()},
            "action": {
                "names": list(self.space.names),
                "units": list(self.space.units),
                "min": _plain(values.min(axis=0)),
                "q01": _plain(self.q01),
                "q99": _plain(self.q99),
                "max": _plain(values.max(axis=0)),
            },
            "poses": [stream.to_dict() for stream in self.poses],
            "points": {column.field: column.to_dict() for column in self.points},
            "instructions": dict(self.words.most_common()),
            "findings": [finding.to_dict() for finding in self.findings],
            "drafted_card": self.draft.to_yaml() if self.draft else None,
        }


def _plain(values: Float64[np.ndarray, " d"]) -> list[float | None]:
    """Numbers, None where JSON has none."""
    return [float(value) if np.isfinite(value) else None for value in values]


@np.errstate(invalid="ignore")  # NaN and infinity are findings, not warnings
def inspect_dataset(
    place: str | Path,
    *,
    card: Card | str | Path | None = None,
    split: str = "train",
    episodes: int = EPISODES,
) -> Inspection:
    """Look at a dataset; without a card, through a drafted one.

    Args:
        place: as `open_dataset` takes it: an RLDS version directory, its index, a LeRobot folder,
            or an address of either.
        card: how to read it; a card, a card file, or None for the dataset's own `card.yaml`.
            Where there is none, one is drafted.
        split: which split.
        episodes: how many episodes to look at, evenly spread over the split.

    Raises:
        DatasetError: no dataset, no such split, or a given card that does not fit.
    """
    source = open_source(place)
    numbers = _spread(source, split, episodes)
    everything = np.array(source.splits[split], np.int64)
    lengths = np.asarray(source.episode_lengths)[everything]
    columns, unread = numeric_columns(source, numbers)
    if isinstance(card, str | Path):
        card = pick_card(Path(card), source.name)
    card = find_card(source) if card is None else card
    drafted = None
    if card is None:
        drafted = draft_card(source, columns)
        card = drafted.to_card()
    of_files = findings_of_files(source, card)
    trajectories = _standardise(source, card, numbers)
    kept = [i for i, t in enumerate(trajectories) if len(t.action)]
    if not kept:
        raise DatasetError(
            f"none of the {len(numbers)} episodes looked at has a step left after the card's drops"
        )
    standard = [trajectories[i] for i in kept]
    used = [numbers[i] for i in kept]
    action = Series.join([t.action for t in standard])
    space = card.action_space_of(action.values.shape[1])
    views = view_cameras(source, card, standard, used)
    measured = _measured_rate(columns, source.fps)
    said = [t.language for t in trajectories]
    state = None
    if card.proprio and all(t.proprio is not None for t in standard):
        state = Series.join([t.proprio for t in standard if t.proprio is not None])
    poses = pose_streams(card, space, action, state, columns, card.control_hz or measured)
    sizes = {slot: view.size for slot, view in views.items() if view.size is not None}
    points = look_at_points(source, card, standard, used, sizes)
    plain = {key: series for key, series in columns.items() if key not in card.points.values()}
    about_action = _action_findings(card, action, space, state, poses, used, columns)
    found = [
        *of_files,
        *unread,
        *motion.not_finite(plain, numbers),  # NaN in a point is none
        *about_action,
        *pose_findings(poses, about_action),
        *episode_rules.short_episodes(
            np.array([len(t.action) for t in trajectories], np.int64), numbers
        ),
        *episode_rules.instructions(said),
        *(_unread(field) for field in source.fields if field.note),
        *episode_rules.control_rate(card.control_hz, measured),
        *(
            finding
            for view in views.values()
            for finding in view.findings
            if not any(known.evidence in finding.evidence for known in of_files)
        ),
        *(finding for column in points for finding in column.findings),
    ]
    finite = action.values[np.isfinite(action.values).all(axis=1)]
    q01, q99 = np.quantile(
        finite if len(finite) else np.zeros((1, space.dim)), [0.01, 0.99], axis=0
    )
    firsts = (next((w for w in words or () if w.strip()), "") for words in said)
    return Inspection(
        source=source,
        card=card,
        draft=drafted,
        split=split,
        num_episodes=len(everything),
        num_steps=int(lengths.sum()),
        episodes=tuple(used),
        all_lengths=lengths,
        action=action,
        raw_action=_raw_action(card, columns),
        space=space,
        q01=q01,
        q99=q99,
        measured_hz=measured,
        words=Counter(firsts),
        views=views,
        poses=poses,
        points=points,
        findings=worst_first(found),
    )


def draft_for(source: Source, *, split: str = "train", episodes: int = EPISODES) -> Draft:
    """A card drafted from some episodes, whether the dataset brings one or not."""
    return draft_card(source, numeric_columns(source, _spread(source, split, episodes))[0])


def _spread(source: Source, split: str, episodes: int) -> list[int]:
    """Numbers of up to so many episodes with steps, evenly spread over a split."""
    if episodes < 1:
        raise DatasetError(f"episodes must be at least 1, got {episodes}")
    if split not in source.splits:
        raise DatasetError(f"{source.name} has no split {split!r}; it has {list(source.splits)}")
    everything = list(source.splits[split])
    if not everything:
        raise DatasetError(f"split {split!r} of {source.name} has no episodes")
    at = np.linspace(0, len(everything) - 1, min(episodes, len(everything))).round().astype(int)
    numbers = [everything[i] for i in np.unique(at)]
    return [n for n in numbers if source.episode_lengths[n] > 0] or numbers[:1]


def _unread(field: Field) -> Finding:
    return Finding(
        rule="column cannot be read",
        severity="note",
        where=field.key,
        evidence=field.note,
        cure="the card does without it; to use it, write the data again",
    )


def _standardise(source: Source, card: Card, episodes: list[int]) -> list[Standardised]:
    check_keys(card, SourceFields(source))
    keys = wanted_keys(card)
    found = []
    for episode in episodes:
        with in_episode(f"{source.name}/{source.version}", episode):
            found.append(standardise(card, source.trajectory(episode, keys)))
    return found


def _raw_action(card: Card, columns: dict[str, Series]) -> dict[str, Series]:
    keys = dict.fromkeys(term.path for term in card.action.terms if term.path in columns)
    return {key: columns[key] for key in keys if key is not None}


def _measured_rate(columns: dict[str, Series], fps: float | None) -> float | None:
    """Hz by the median distance of time stamps, if they are seconds; else what the dataset says."""
    for key in TIME_STAMPS:
        if key in columns and columns[key].values.shape[1] == 1 and columns[key].has_next.any():
            gap = float(np.median(columns[key].changes))
            if 1e-3 < gap < 60:
                return 1 / gap
    return fps


def _declared_constant(card: Card, dim: int) -> NDArray[np.bool_]:
    """(dim,) columns of the action that the card itself sets to a constant."""
    flags: list[bool] = []
    for i, term in enumerate(card.action.terms):
        rest = dim - len(flags) - (len(card.action.terms) - i - 1)
        width = term.width if term.path is None else _width(term.columns, rest)
        flags += [term.path is None] * width
    return np.array((flags + [False] * dim)[:dim])


def _width(columns: slice, otherwise: int) -> int:
    """Columns that a slice takes, where both ends are on one side."""
    start, stop = columns.start, columns.stop
    if start is not None and stop is not None and (start < 0) == (stop < 0):
        return int(stop - start)
    if start is not None and stop is None and start < 0:
        return int(-start)
    return otherwise


def _action_findings(
    card: Card,
    action: Series,
    space: ActionSpace,
    state: Series | None,
    poses: tuple[PoseStream, ...],
    episodes: list[int],
    columns: dict[str, Series],
) -> list[Finding]:
    """Every rule about the action, and those that compare it with the state."""
    declared = _declared_constant(card, space.dim)
    found = motion.not_finite({"action": action}, episodes)
    if found:
        return found
    arm = normalised_dimensions(space)
    skipped = (declared | ~arm).tolist()  # the gripper has a rule of its own
    found += motion.constant_dimensions(action, space.names, skipped)
    encoding = card.proprio.encoding if card.proprio else None
    # A state that is itself made of differences says nothing about where the arm is.
    lost = any(stream.name == "proprio" and stream.kind == "difference" for stream in poses)
    first = 0
    for group in space.groups:
        where = slice(first, first + group.dim)
        first += group.dim
        if group.role == "gripper" or declared[where].all():
            continue
        values = action.columns(where)
        same = None if lost else _same_quantity(state, encoding, group.role, group.dim)
        found += motion.absolute_or_delta(values, same, group.names, expect_delta=group.delta)
        if group.role != "translation" and group.unit == "rad":
            found += degrees(values, same, group.names, delta=group.delta)
            found += wrapped_angles(values, group.names, delta=group.delta)
    if state is not None and encoding == "POS_EULER" and state.values.shape[1] >= 6:
        angles = state.columns(slice(3, 6))
        turns = ("roll", "pitch", "yaw")
        found += wrapped_angles(angles, turns, delta=False, where="proprio")
    lines = {"action.rotation": card.action.rotation_terms}
    if encoding == "POS_EULER" and card.proprio:
        lines["proprio (POS_EULER)"] = card.proprio.terms
    found += quaternion_as_euler(columns, lines)
    moving = action.columns(np.flatnonzero(arm & ~declared).tolist())
    names = [name for name, use in zip(space.names, arm & ~declared, strict=True) if use]
    units = [unit for unit, use in zip(space.units, arm & ~declared, strict=True) if use]
    found += motion.hardly_moves(moving, names, units)
    rare = motion.rare_motion(moving, names, units) if names else []
    found += rare
    found += motion.outliers(moving, names, episodes, [finding.where for finding in rare])
    hands = action.columns(np.flatnonzero(~arm).tolist()) if not arm.all() else None
    if names:
        found += motion.no_ops(moving, hands, names, space.deltas[arm & ~declared])
    terms = card.action.gripper_terms
    for i, term in enumerate(terms if hands is not None and len(terms) == (~arm).sum() else []):
        place = int(np.flatnonzero(~arm)[i])
        gripper, name = action.columns([place]), space.names[place]
        found += gripper_rules.gripper_range(gripper, name=name)
        raw = columns[term.path].columns(term.columns) if term.path in columns else None
        found += gripper_rules.gripper_moves(
            gripper, declared=term.path is None, term=term, raw=raw, name=name
        )
        measured = None
        if len(terms) == 1 and encoding in ("POS_EULER", "POS_QUAT", "JOINT") and state is not None:
            measured = state.columns([state.values.shape[1] - 1])
        turned = any(op.name in ("invert", "rel_to_abs") for op in term.ops)
        found += gripper_rules.gripper_inverted(
            gripper, measured, source=term.path or "", turned=turned, name=name
        )
    return found


def _same_quantity(
    state: Series | None, encoding: str | None, role: str, dim: int
) -> Series | None:
    """The columns of the proprioception that measure what a group of the action commands."""
    if state is None:
        return None
    columns = {
        "translation": slice(0, 3) if encoding in ("POS_EULER", "POS_QUAT") else None,
        "rotation": slice(3, 6) if encoding == "POS_EULER" else None,
        "joint": slice(0, dim) if encoding in ("JOINT", "JOINT_BIMANUAL") else None,
    }[role]
    if (
        columns is None
        or state.values.shape[1] < columns.stop
        or dim != columns.stop - columns.start
    ):
        return None
    return state.columns(columns)
