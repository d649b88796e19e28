"""Smells of the gripper, which is absolute with 1 = open and 0 = closed in a standard action."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from spatialvla_ft.data.inspection.findings import Finding, percent
from spatialvla_ft.data.inspection.series import Series, correlation

MARGIN = 0.02
"""How far outside of [0, 1] a gripper may stray."""
MOVES = 0.05
LAGS = 6
"""Steps by which a gripper may follow its command."""


def convention(values: Float64[np.ndarray, " N"]) -> str:
    """What the numbers of a gripper column look like, in words."""
    low, high = float(values.min()), float(values.max())
    ends = float(((np.abs(values - low) < 0.02) | (np.abs(values - high) < 0.02)).mean())
    if high - low < 1e-6:
        return f"constant {low:g}"
    if low < -0.5 and high <= 1 + MARGIN and float((np.abs(values) <= 0.1).mean()) > 0.5:
        return "events: +-1 where it opens or closes, else 0"
    kind = "two states" if ends > 0.95 else "continuous"
    return f"{kind}, {low:.3g} to {high:.3g}"


def gripper_range(gripper: Series) -> list[Finding]:
    """Outside of [0, 1]."""
    values = gripper.values[:, 0]
    low, high = float(values.min()), float(values.max())
    if low >= -MARGIN and high <= 1 + MARGIN:
        return []
    if convention(values).startswith("events"):
        cure = "ops: [{rel_to_abs: {eps: 0.1, positive_is: close}}], or positive_is: open"
    elif low < -MARGIN and high <= 1 + MARGIN:
        cure = "ops: [{clip: [0, 1]}], and invert after it where +1 closes"
    else:
        cure = f"ops: [{{scale: {1 / max(abs(low), abs(high)):.4g}}}, {{clip: [0, 1]}}]"
    return [
        Finding(
            rule="gripper range",
            severity="error",
            where="action gripper",
            evidence=f"values from {low:.4g} to {high:.4g} ({convention(values)}); 0 to 1 is the "
            "standard, 1 = open",
            cure=f"give the gripper's term {cure}",
        )
    ]


def gripper_moves(gripper: Series, *, declared: bool) -> list[Finding]:
    """Never moving, unless the card itself says so; or moving through all values in between."""
    values = gripper.values[:, 0]
    if np.ptp(values) < MOVES:
        if declared:
            return []
        return [
            Finding(
                rule="gripper never moves",
                severity="warning",
                where="action gripper",
                evidence=f"{values[0]:.4g} in all {len(values)} steps, spread {np.ptp(values):.2g}",
                cure="check the gripper's term; a task without a gripper says ones(1)",
            )
        ]
    if values.max() < 0.5 or values.min() >= 0.5:
        scale = f"{{scale: {1 / values.max():.4g}}}, " if values.max() < 0.5 else ""
        return [
            Finding(
                rule="gripper never crosses 0.5",
                severity="warning",
                where="action gripper",
                evidence=f"values from {values.min():.4g} to {values.max():.4g}; grids take less "
                "than 0.5 for closed, so all are one state",
                cure=f"give the gripper's term ops: [{scale}{{clip: [0, 1]}}], or another scale "
                "that brings open to 1 and closed to 0",
            )
        ]
    between = float(((values > 0.05) & (values < 0.95)).mean())
    if between <= 0.1:
        return []
    return [
        Finding(
            rule="gripper continuous",
            severity="note",
            where="action gripper",
            evidence=f"{percent(between)} of the steps lie between 0.05 and 0.95",
            cure="grids have a token for open and one for closed, split at 0.5; to make the "
            "switch sharp: {binarize_backward: {open_above: 0.95, closed_below: 0.05}}",
        )
    ]


def gripper_inverted(
    gripper: Series, state: Series | None, *, source: str = "", turned: bool = False
) -> list[Finding]:
    """Signs that 1 means closed: the measured opening, how episodes start, the column's name.

    Args:
        gripper: (N, 1) standard command, 1 = open.
        state: (N, 1) what the card calls the measured opening, larger = wider, or None.
        source: key of the raw column.
        turned: whether the card's ops turn it around (invert, rel_to_abs).
    """
    values = gripper.values[:, 0]
    if np.ptp(values) < MOVES:
        return []
    evidence = []
    if state is not None and np.ptp(state.values) > 1e-9:
        lags = {lag: _lagged(gripper, state, lag) for lag in range(LAGS)}
        lag = max(lags, key=lambda k: abs(lags[k]))
        if lags[lag] < -0.5:
            evidence.append(
                f"correlation {lags[lag]:.2f} with the measured gripper {lag} steps later, so one "
                "of both has 1 = closed"
            )
    moving = [part[:, 0] for part in gripper.episodes() if len(part) and np.ptp(part) > 0.5]
    closed = sum(part[0] < 0.5 for part in moving)
    if len(moving) >= 3 and closed >= 0.8 * len(moving):
        evidence.append(
            f"{closed} of the {len(moving)} episodes in which it moves start with it closed; most "
            "robots start open"
        )
    name = source.rsplit(".", 1)[-1].lower()
    if "clos" in name and not turned:
        evidence.append(f"the column is called {name!r} and is not inverted")
    if not evidence:
        return []
    return [
        Finding(
            rule="gripper inverted",
            severity="warning",
            where="action gripper",
            evidence="; ".join(evidence),
            cure="look at the pictures: the standard is 1 = open; add or remove `invert` in the "
            "gripper's ops (or turn the proprio's gripper around)",
        )
    ]


def _lagged(command: Series, state: Series, lag: int) -> float:
    """Correlation of the command with the state `lag` steps later, within episodes."""
    pairs = zip(command.episodes(), state.episodes(), strict=True)
    parts = [(a[: len(a) - lag, 0], b[lag:, 0]) for a, b in pairs if len(a) > lag]
    if not parts:
        return 0.0
    return correlation(*(np.concatenate(side) for side in zip(*parts, strict=True)))
