"""From the raw columns of a trajectory to standard actions, proprioception and language."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray

from spatialvla_ft.actions.spaces import RawActions
from spatialvla_ft.data.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.poses import pose_difference, pose_matrices
from spatialvla_ft.data.terms import Term


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
    """

    action: RawActions
    proprio: Float32[np.ndarray, "T n"] | None
    language: list[str] | None
    images: dict[str, str]
    steps: Int64[np.ndarray, " T"]


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
    return (*_keys(_terms(card)), *_word_keys(card))


def standardise(card: Card, trajectory: Mapping[str, Any]) -> Standardised:
    """Apply a card to the columns of one trajectory.

    Args:
        card: how to read the dataset.
        trajectory: nested, or with dotted keys; (T, ...) arrays, text as bytes or str.

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
    lengths = {key: len(raw[key]) for key in keys}
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"card {card.name!r}: columns of different lengths {lengths}")
    columns = {key: raw[key][first:] for key in keys}
    count = max(0, next(iter(lengths.values()), 0) - first)
    width = None if card.action.joints is not None else card.action_space.dim
    steps = range(first, first + count)
    return _apply(card, lambda term: term.evaluate(columns, count), columns, steps, width)


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

        return _apply(self.card, evaluate, columns, steps, self._width)


def _terms(card: Card) -> list[Term]:
    terms: list[Term] = list(card.action.terms)
    terms += card.proprio.terms if card.proprio else []
    return [*terms, card.relabel.source] if card.relabel else terms


def _keys(terms: Iterable[Term]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(term.path for term in terms if term.path is not None))


def _word_keys(card: Card) -> tuple[str, ...]:
    key = card.language.key if card.language.kind != "none" else None
    return (key,) if key else ()


def _apply(
    card: Card,
    evaluate: Callable[[Term], NDArray[Any]],
    columns: Mapping[str, Any],
    steps: range,
    width: int | None,
) -> Standardised:
    """Standard rows of consecutive steps; the last one goes where actions need the step ahead.

    Args:
        card: how to read the dataset.
        evaluate: a term to its values at the steps.
        columns: with the words at the steps.
        steps: numbers of the steps.
        width: of the action; None where the dataset decides it.
    """
    action = _join(card, "action", card.action.terms, evaluate)
    if width is not None and action.shape[1] != width:
        names = card.action_space.names
        raise DatasetError(
            f"card {card.name!r}: {', '.join(names)} make {len(names)} columns, the terms give "
            f"{action.shape[1]}; mend the slices"
        )
    proprio = None
    if card.proprio:
        proprio = _join(card, "proprio", card.proprio.terms, evaluate)
    language = _language(card, columns)
    if card.relabel and len(steps):
        low, high = card.relabel.dims
        state = _join(card, "relabel", [card.relabel.source], evaluate)
        if card.relabel.rule == "target_minus_current":
            action = _towards(card, action, state)
        else:
            action = action[:-1].copy()
            action[:, low:high] = state[1:] - state[:-1]
            steps = steps[:-1]
            proprio = None if proprio is None else proprio[:-1]
            language = None if language is None else language[:-1]
    images = {slot: term.path for slot, term in (card.cameras or {}).items()}
    numbers = np.arange(steps.start, steps.stop, dtype=np.int64)
    return Standardised(RawActions(action), proprio, language, images, numbers)


def take_rows(found: Standardised, keep: Bool[np.ndarray, " T"]) -> Standardised:
    """The steps for which `keep` is true."""
    if keep.all():
        return found
    words = found.language
    return Standardised(
        RawActions(found.action[keep]),
        None if found.proprio is None else found.proprio[keep],
        None if words is None else [words[i] for i in np.flatnonzero(keep)],
        found.images,
        found.steps[keep],
    )


def _join(
    card: Card, what: str, terms: list[Term], evaluate: Callable[[Term], NDArray[Any]]
) -> Float32[np.ndarray, "T n"]:
    try:
        return np.concatenate([evaluate(term).astype(np.float32) for term in terms], axis=-1)
    except (ValueError, IndexError) as error:
        raise DatasetError(f"card {card.name!r}, {what}: {error}") from None


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


def _language(card: Card, columns: Mapping[str, Any]) -> list[str] | None:
    language = card.language
    if language.kind == "none" or language.key is None:
        return None
    values = np.asarray(columns[language.key])
    if language.kind == "utf8_codepoints":
        return [_codepoints(row) for row in values]
    if language.kind == "string_array":
        return [_text(row.ravel()[0]) if row.size else "" for row in values]
    rows = values.reshape(len(values)).tolist()
    # Most episodes have one instruction: one string in memory, not one per step.
    texts = {row: _text(row) for row in set(rows)}
    return [texts[row] for row in rows]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _codepoints(row: np.ndarray) -> str:
    """Unicode code points up to the first 0; numbers that are none become U+FFFD."""
    ends = np.flatnonzero(row == 0)
    codes = row[: ends[0] if ends.size else None].astype(np.int64)
    none = (codes < 0) | (codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))
    return "".join(map(chr, np.where(none, 0xFFFD, codes).tolist()))
