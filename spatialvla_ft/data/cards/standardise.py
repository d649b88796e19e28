"""From the raw columns of a trajectory to standard actions, proprioception and language.

Joint actions as end-effector deltas, where the user brings the robot's forward kinematics.

Poses and their differences.

The filters of a card: which steps begin a chunk that moves.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from spatialvla_ft.actions.spaces import RawActions
from spatialvla_ft.data.cards.card import Card, Group
from spatialvla_ft.data.cards.ops import euler_xyz
from spatialvla_ft.data.cards.terms import Term
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.words import read_words


def pose_difference(
    target: Float64[np.ndarray, "T 4 4"], current: Float64[np.ndarray, "T 4 4"]
) -> Float32[np.ndarray, "T 6"]:
    """(dx, dy, dz) and roll, pitch, yaw that lead from `current` to `target`, axes of the base.

    The rotation is R_target R_current^T, so that small turns add to the pose in the base frame.
    """
    turn = Rotation.from_matrix(target[:, :3, :3]) * Rotation.from_matrix(current[:, :3, :3]).inv()
    moved = target[:, :3, 3] - current[:, :3, 3]
    return np.concatenate([moved, euler_xyz(turn)], axis=1).astype(np.float32)


def pose_matrices(pose: Float32[np.ndarray, "T 6"]) -> Float64[np.ndarray, "T 4 4"]:
    """x, y, z, roll, pitch, yaw (scipy 'xyz') as homogeneous matrices."""
    matrices = np.tile(np.eye(4), (len(pose), 1, 1))
    matrices[:, :3, :3] = Rotation.from_euler("xyz", pose[:, 3:].astype(np.float64)).as_matrix()
    matrices[:, :3, 3] = pose[:, :3]
    return matrices


@dataclass(frozen=True)
class Standardised:
    """One trajectory, T steps after the card's drops.

    Attributes:
        action: (T, dim) float32 in the robot's units, by the card's action space; grippers are
            absolute with 1 = open.
        proprio: (T, n) float32, or None if the card has none.
        language: what the robot was told at each step, or None if the dataset has no words.
        images: slot -> key of the image.
        steps: (T,) which raw step each row was.
        sentences: all ways of saying it at each step, where the card has one drawn; else None.
    """

    action: RawActions
    proprio: Float32[np.ndarray, "T n"] | None
    language: list[str] | None
    images: dict[str, str]
    steps: Int64[np.ndarray, " T"]
    sentences: list[tuple[str, ...]] | None = None


def flatten(trajectory: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; dotted keys pass."""
    flat: dict[str, Any] = {}
    for key, value in trajectory.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def wanted_keys(card: Card) -> tuple[str, ...]:
    """Columns that `standardise` reads."""
    return tuple(dict.fromkeys((*_keys(_terms(card)), *card.language.keys)))


def standardise(card: Card, trajectory: Mapping[str, Any]) -> Standardised:
    """Apply a card to the columns of one trajectory.

    Args:
        card: how to read the dataset.
        trajectory: nested, or with dotted keys; (T, ...) arrays, text as bytes or str; words of
            the whole episode may stand alone.

    Raises:
        DatasetError: the card reads what is not there, or the widths do not fit.
    """
    raw = flatten(trajectory)
    first = card.drop.first
    keys = wanted_keys(card)
    missing = [key for key in keys if key not in raw]
    if missing:
        raise DatasetError(
            f"card {card.name!r} reads {missing}, the dataset has {sorted(raw)}; mend the card"
        )
    spoken = {key: raw[key] for key in card.language.keys if isinstance(raw[key], bytes | str)}
    lengths = {key: len(raw[key]) for key in keys if key not in spoken}
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"card {card.name!r}: columns of different lengths {lengths}")
    count = max(0, next(iter(lengths.values()), 0) - first)
    columns = {key: raw[key][first:] for key in lengths}
    columns |= {key: [text] * count for key, text in spoken.items()}
    width = None if card.action.joints is not None else card.action_space.dim
    steps = range(first, first + count)
    groups = card.action.groups
    return _apply(card, groups, lambda term: term.evaluate(columns, count), columns, steps, width)


Read = Callable[[tuple[str, ...], range | None], Mapping[str, Any]]
"""Columns of an episode by their keys, of all steps or of some."""


class RowsOfCard:
    """Some rows of what `standardise` gives, without the rest of the episode.

    Only the steps that the rows need are read; all of them only of columns of terms that look along
    the episode, such as gripper events.

    Args:
        card: how to read the dataset.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self._groups = card.action.groups
        terms = _terms(card)
        self._whole = _keys(term for term in terms if term.looks_along)
        self._part = tuple(key for key in wanted_keys(card) if key not in self._whole)
        self._ahead = card.lost_steps - card.drop.first
        self._width = None if card.action.joints is not None else card.action_space.dim

    def standardise(self, read: Read, rows: range) -> Standardised:
        """Rows `rows` of `standardise(card, read(wanted_keys(card), None))`, bit for bit.

        Args:
            read: of the episode.
            rows: without gaps, all of them rows that the episode has.
        """
        start, stop = rows.start, rows.stop + self._ahead
        first = self.card.drop.first
        steps = range(first + start, first + stop)
        columns = dict(read(self._part, steps)) if self._part else {}
        whole = read(self._whole, None) if self._whole else {}
        whole = {key: values[first:] for key, values in whole.items()}
        columns |= {key: values[start:stop] for key, values in whole.items()}

        def evaluate(term: Term) -> NDArray[Any]:
            if term.looks_along and term.path is not None:
                return term.evaluate(whole, len(whole[term.path]))[start:stop]
            return term.evaluate(columns, len(steps))

        return _apply(self.card, self._groups, evaluate, columns, steps, self._width)


def _terms(card: Card) -> list[Term]:
    terms: list[Term] = list(card.action.terms)
    terms += card.proprio.terms if card.proprio else []
    return [*terms, card.relabel.source] if card.relabel else terms


def _keys(terms: Iterable[Term]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(term.path for term in terms if term.path is not None))


def _apply(
    card: Card,
    groups: list[Group],
    evaluate: Callable[[Term], NDArray[Any]],
    columns: Mapping[str, Any],
    steps: range,
    width: int | None,
) -> Standardised:
    """Standard rows of consecutive steps; the last one goes where actions need the step ahead.

    Args:
        card: how to read the dataset.
        groups: of its action.
        evaluate: a term to its values at the steps.
        columns: with the words at the steps.
        steps: numbers of the steps.
        width: of the action; None where the dataset decides it.
    """
    parts = _parts_of_action(card, groups, evaluate, columns)
    action = _side_by_side(card, "action", card.action.terms, [x for part in parts for x in part])
    if width is not None and not len(action):
        action = np.empty((0, width), np.float32)
    elif width is not None and action.shape[1] != width:
        raise DatasetError(f"card {card.name!r}: {wrong_total(card, action.shape[1])}")
    if len(action):
        for group, part in zip(groups, parts, strict=True):
            found = sum(values.shape[1] for values in part)
            if group.width not in (None, found):
                raise DatasetError(wrong_width(card, *group, found=found))
    proprio = None
    if card.proprio:
        proprio = _join(card, "proprio", card.proprio.terms, evaluate)
    words = read_words(card.language, columns, steps)
    if card.relabel and len(steps):
        low, high = card.relabel.dims
        state = _join(card, "relabel", [card.relabel.source], evaluate)
        if card.relabel.rule == "target_minus_current":
            action = _towards(card, action, state)
        else:
            if state.shape[1] != high - low or high > action.shape[1]:
                raise DatasetError(
                    f"card {card.name!r}, relabel: dims [{low}, {high}] of {action.shape[1]} "
                    f"columns are replaced by {state.shape[1]} of {card.relabel.source}; mend dims "
                    "or the slice of from"
                )
            action = action[:-1].copy()
            action[:, low:high] = state[1:] - state[:-1]
            steps = steps[:-1]
            proprio = None if proprio is None else proprio[:-1]
    images = {slot: term.path for slot, term in (card.cameras or {}).items()}
    numbers = np.arange(steps.start, steps.stop, dtype=np.int64)
    language = None if words is None else words.first[: len(steps)]
    said = None if words is None or words.sentences is None else words.sentences[: len(steps)]
    return Standardised(RawActions(action), proprio, language, images, numbers, said)


def take_rows(found: Standardised, keep: Bool[np.ndarray, " T"]) -> Standardised:
    """The steps for which `keep` is true."""
    if keep.all():
        return found
    words, said, rows = found.language, found.sentences, np.flatnonzero(keep).tolist()
    return Standardised(
        RawActions(found.action[keep]),
        None if found.proprio is None else found.proprio[keep],
        None if words is None else [words[i] for i in rows],
        found.images,
        found.steps[keep],
        None if said is None else [said[i] for i in rows],
    )


def _parts_of_action(
    card: Card,
    groups: list[Group],
    evaluate: Callable[[Term], NDArray[Any]],
    columns: Mapping[str, Any],
) -> list[list[NDArray[np.float32]]]:
    """The values of the terms of each group."""
    try:
        return [
            [_evaluate(card, f"action.{group.name}", term, evaluate) for term in group.terms]
            for group in groups
        ]
    except DatasetError as error:
        total = _given_in_all(card, columns)
        wrong = "" if total is None else wrong_total(card, total)
        raise DatasetError(f"{error}; {wrong}" if wrong else str(error)) from None


def _evaluate(
    card: Card, what: str, term: Term, evaluate: Callable[[Term], NDArray[Any]]
) -> NDArray[np.float32]:
    try:
        return evaluate(term).astype(np.float32)
    except (ValueError, IndexError, TypeError, zlib.error) as error:
        raise DatasetError(f"card {card.name!r}, {what}: {error}") from None


def _join(
    card: Card, what: str, terms: list[Term], evaluate: Callable[[Term], NDArray[Any]]
) -> Float32[np.ndarray, "T n"]:
    """Terms side by side."""
    return _side_by_side(
        card, what, terms, [_evaluate(card, what, term, evaluate) for term in terms]
    )


def _side_by_side(
    card: Card, what: str, terms: list[Term], parts: list[NDArray[np.float32]]
) -> Float32[np.ndarray, "T n"]:
    try:
        found = np.concatenate(parts, axis=-1)
    except ValueError as error:
        raise DatasetError(f"card {card.name!r}, {what}: {error}") from None
    if found.ndim != 2:
        raise DatasetError(
            f"card {card.name!r}, {what}: {', '.join(map(str, terms))} have shape "
            f"{found.shape[1:]} at each step, a term gives a row of numbers; mend the card"
        )
    return found


def _given_in_all(card: Card, columns: Mapping[str, Any]) -> int | None:
    """Columns of the action, slices that leave theirs cut short; None where that is not known."""
    total = 0
    for term in card.action.terms:
        values = columns.get(term.path or "", np.empty((0, 0)))
        if not isinstance(values, np.ndarray):
            return None
        taken = term.width_of(values.shape[-1] if values.ndim > 1 else 1)
        if taken is None:
            return None
        total += taken
    return total


def wrong_total(card: Card, found: int) -> str:
    """What is wrong with terms of a hand's action that give so many columns; empty if nothing."""
    if card.action.joints is not None or found == card.action_space.dim:
        return ""
    names = card.action_space.names
    return f"{', '.join(names)} make {len(names)} columns, the terms give {found}; mend the slices"


def wrong_width(card: Card, name: str, terms: list[Term], width: int | None, *, found: int) -> str:
    """What is wrong with terms of the action that give another number of columns than `width`."""
    return (
        f"card {card.name!r}, action.{name}: {', '.join(map(str, terms))} make {found} columns, "
        f"{width} are needed; mend the slices"
    )


def _towards(
    card: Card, action: Float32[np.ndarray, "T 7"], state: Float32[np.ndarray, "T n"]
) -> Float32[np.ndarray, "T 7"]:
    """Commanded poses as changes of the present pose; the gripper stays."""
    if state.shape[1] != 6:
        raise DatasetError(
            f"card {card.name!r}, relabel: `from` must be x, y, z, roll, pitch, yaw, got "
            f"{state.shape[1]} columns; mend its slice"
        )
    change = pose_difference(pose_matrices(action[:, :6]), pose_matrices(state))
    return np.concatenate([change, action[:, 6:]], axis=1)


ForwardKinematics = Callable[[Float32[np.ndarray, "T joints"]], Float64[np.ndarray, "T 4 4"]]
"""Joints, in the units that the dataset records, to the hand's pose in the robot's base, metres."""


def to_end_effector(
    card: Card, trajectory: Standardised, forward_kinematics: ForwardKinematics
) -> Standardised:
    """Joint actions as the hand's change from where the arm is to where it is sent.

    Needs a card whose action is absolute joints with a gripper, and whose proprioception begins
    with the same joints in the same units.

    Raises:
        DatasetError: the card is not of that kind, or the function returns another shape.
    """
    hands = len(card.action.gripper or ())
    if card.action.joints is None or hands != 1 or card.action.is_delta:
        raise DatasetError(
            f"card {card.name!r}: forward kinematics apply to absolute joint actions with one "
            f"gripper; this card's action is {card.action.encoding}, "
            f"{'deltas' if card.action.is_delta else 'absolute'}, grippers: {hands}; leave "
            "forward_kinematics out"
        )
    joints = trajectory.action.shape[1] - 1
    if trajectory.proprio is None or trajectory.proprio.shape[1] < joints:
        raise DatasetError(
            f"card {card.name!r}: forward kinematics need the arm's present joints; give the card "
            f"a proprio that begins with the {joints} joints of the action"
        )
    count = len(trajectory.action)
    poses = []
    for angles in (trajectory.action[:, :joints], trajectory.proprio[:, :joints]):
        pose = np.asarray(forward_kinematics(angles), np.float64)
        if pose.shape != (count, 4, 4):
            raise DatasetError(
                f"forward_kinematics must return ({count}, 4, 4) poses for {angles.shape} joints, "
                f"got {pose.shape}"
            )
        poses.append(pose)
    change = pose_difference(poses[0], poses[1]) if count else np.empty((0, 6), np.float32)
    action = np.concatenate([change, trajectory.action[:, joints:]], axis=1)
    return dataclasses.replace(trajectory, action=RawActions(action.astype(np.float32)))


def moving(card: Card, action: RawActions, horizon: int) -> Bool[np.ndarray, " T"]:
    """Whether any action of the chunk that starts at a step moves, for every filter."""
    keep = np.ones(len(action), bool)
    for rule in card.filters:
        low, high = rule.dims
        if high > action.shape[1]:
            raise DatasetError(
                f"card {card.name!r}, filters: dims {list(rule.dims)} leave the action, which has "
                f"{action.shape[1]} columns; mend dims, q01 and q99"
            )
        spread = np.asarray(rule.q99) - np.asarray(rule.q01) + 1e-8
        moves = (np.abs(2 * action[:, low:high] / spread) > rule.tol).any(axis=1)
        last = len(moves) - 1
        ahead = np.minimum(np.arange(len(moves))[:, None] + np.arange(horizon), last)
        keep &= moves[ahead].any(axis=1)
    return keep
