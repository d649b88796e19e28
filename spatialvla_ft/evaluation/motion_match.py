"""Do two records of the same motions have the same axes: which goes with which, and its sign.

Shape letters: n steps, k axes of one group (the three translations or rotations of an arm).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

Verdict = Literal["fine", "flipped", "swapped", "scaled", "still", "unclear"]

LEAST = 0.35
"""A correlation below says nothing, however many steps there are, ..."""
SIGMAS = 3.5
"""... nor one below so many times its own scatter, 1 / sqrt(n)."""
CLEARER = 0.3
"""So much better, per axis that changes, must another order or sign explain the motions."""
STILL = 0.02
"""An axis that spreads less than this share of its group's widest does not move."""
FACTOR = 4.0
"""Motions that reach so many times as far, or as little, are of another scale."""
REACH = 0.9


@dataclass(frozen=True)
class AxisMatch:
    """One axis of a policy beside the recorded one of the same name.

    Attributes:
        name, unit, role: of the axis, and of its group.
        recorded, predicted: what nine in ten motions stay below, either way, in the unit.
        agreement: share of the steps with the same sign, among those in which both move; None
            where there are none.
        correlation: of predicted with recorded; None where one of them does not move.
        goes_with: the recorded axis that it follows, with its sign, e.g. "-y"; None if it follows
            none clearly.
        goes_with_correlation: with that one, its sign applied.
        verdict: what follows.
    """

    name: str
    unit: str
    role: str
    recorded: float
    predicted: float
    agreement: float | None
    correlation: float | None
    goes_with: str | None
    goes_with_correlation: float | None
    verdict: Verdict

    @property
    def scale(self) -> float | None:
        """Reach of the predicted motions over that of the recorded ones."""
        return self.predicted / self.recorded if self.recorded > 0 else None


def match_axes(
    predicted: ArrayLike,
    recorded: ArrayLike,
    names: Sequence[str],
    units: Sequence[str],
    role: str = "translation",
) -> list[AxisMatch]:
    """Compare the axes of one group, and find the order and signs that fit best.

    Args:
        predicted: (n, k) motions of a policy.
        recorded: (n, k) motions at the same steps.
        names: of the k axes.
        units: of the k axes.
        role: of the group.

    Raises:
        ValueError: shapes that differ, NaN or infinity, or fewer than 3 steps.
    """
    own, other = (np.asarray(values, np.float64) for values in (predicted, recorded))
    if own.shape != other.shape or own.ndim != 2 or own.shape[1] != len(names):
        raise ValueError(
            f"motions must both be (n, {len(names)}) for {list(names)}, got {own.shape} predicted "
            f"and {other.shape} recorded"
        )
    if len(own) < 3:
        raise ValueError(f"{len(own)} step(s) tell no correlation; give at least 3")
    if not (np.isfinite(own).all() and np.isfinite(other).all()):
        raise ValueError("motions hold NaN or infinite numbers; leave such steps out")
    table = _correlations(own, other)
    order, signs = _best(table, len(own))
    least = max(LEAST, SIGMAS / np.sqrt(len(own)))
    found = []
    for i, (name, unit) in enumerate(zip(names, units, strict=True)):
        r = table[i, i]
        with_r = signs[i] * table[i, order[i]]
        clear = bool(np.isfinite(with_r) and with_r >= least)
        goes_with = f"{'-' if signs[i] < 0 else ''}{names[order[i]]}" if clear else None
        reach = [float(np.quantile(np.abs(values[:, i]), REACH)) for values in (other, own)]
        found.append(
            AxisMatch(
                name=name,
                unit=unit,
                role=role,
                recorded=reach[0],
                predicted=reach[1],
                agreement=_agreement(own[:, i], other[:, i]),
                correlation=float(r) if np.isfinite(r) else None,
                goes_with=goes_with,
                goes_with_correlation=float(with_r) if clear else None,
                verdict=_verdict(i, order[i], signs[i], clear, np.isfinite(r), reach),
            )
        )
    return found


def _correlations(own: np.ndarray, other: np.ndarray) -> Float64[np.ndarray, "k k"]:
    """Of predicted axis i with recorded axis j; NaN where one of them does not move."""
    parts = []
    for values in (own, other):
        centred = values - values.mean(axis=0)
        spread = np.sqrt((centred**2).mean(axis=0))
        moves = spread > max(STILL * float(spread.max()), 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(np.where(moves, centred / spread, np.nan))
    return np.asarray(parts[0].T @ parts[1] / len(own))


def _best(table: Float64[np.ndarray, "k k"], count: int) -> tuple[tuple[int, ...], list[int]]:
    """Order and signs that explain the motions best; as they are, unless others are clearly better.

    A sign that cannot be told is taken to be right, and so is a place.
    """
    k = len(table)
    known = np.nan_to_num(table)
    least = max(LEAST, SIGMAS / np.sqrt(count))
    stay = tuple(range(k))
    best, best_gain = (stay, [1] * k), 0.0
    for order in itertools.permutations(range(k)):
        signs = [-1 if known[i, order[i]] < 0 else 1 for i in range(k)]
        values = [abs(known[i, order[i]]) for i in range(k)]
        for i in range(k):  # what says nothing changes nothing
            if values[i] < least and order[i] == i:
                signs[i], values[i] = 1, known[i, i]
        changed = [i for i in range(k) if order[i] != i or signs[i] < 0]
        if not changed or min(values[i] for i in changed) < least:
            continue
        gain = sum(values[i] - known[i, i] for i in changed) - CLEARER * len(changed)
        if gain > best_gain:
            best, best_gain = (order, signs), gain
    return best


def _agreement(own: np.ndarray, other: np.ndarray) -> float | None:
    scale = [np.quantile(np.abs(values), REACH) for values in (own, other)]
    moving = (np.abs(own) > 0.1 * scale[0]) & (np.abs(other) > 0.1 * scale[1])
    if not moving.any():
        return None
    return float((np.sign(own[moving]) == np.sign(other[moving])).mean())


def _verdict(
    i: int, place: int, sign: int, clear: bool, moves: bool, reach: Sequence[float]
) -> Verdict:
    if place != i:
        return "swapped"
    if sign < 0:
        return "flipped"
    recorded, predicted = reach
    if not moves:
        return "still"
    if not clear:
        return "unclear"
    if not 1 / FACTOR < predicted / recorded < FACTOR:
        return "scaled"
    return "fine"
