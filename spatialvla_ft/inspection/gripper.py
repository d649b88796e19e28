"""Smells of the gripper, which is absolute with 1 = open and 0 = closed in a standard action."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from spatialvla_ft.data.cards.terms import Term
from spatialvla_ft.inspection.findings import Finding, percent
from spatialvla_ft.inspection.series import Series, correlation

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


def gripper_range(gripper: Series, *, name: str = "gripper") -> list[Finding]:
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
            where=f"action {name}",
            evidence=f"values from {low:.4g} to {high:.4g} ({convention(values)}); 0 to 1 is the "
            "standard, 1 = open",
            cure=f"give the gripper's term {cure}",
        )
    ]


def gripper_moves(
    gripper: Series,
    *,
    declared: bool,
    term: Term | None = None,
    raw: Series | None = None,
    name: str = "gripper",
) -> list[Finding]:
    """Never moving, unless the card itself says so; or moving through all values in between.

    Args:
        gripper: (N, 1) as the card makes it.
        declared: whether the card sets it to a constant.
        term: of the card.
        raw: (N', 1) the column that the term reads, before its ops.
        name: of the gripper.
    """
    values = gripper.values[:, 0]
    if np.ptp(values) < MOVES:
        if declared:
            return []
        if term is not None and raw is not None and _varies(raw.values):
            return [_never_crosses(values, term, raw.values, name)]
        is_open = values[0] >= 0.5
        state, constant = ("open", "ones(1)") if is_open else ("closed", "zeros(1)")
        return [
            Finding(
                rule="gripper never moves",
                severity="warning",
                where=f"action {name}",
                evidence=f"{values[0]:.4g} in all {len(values)} steps, spread "
                f"{np.ptp(values):.2g}: always {state}",
                cure="check the gripper's term; a task in which the gripper stays "
                f"{state} says {constant}",
            )
        ]
    if values.max() < 0.5 or values.min() >= 0.5:
        scale = f"{{scale: {1 / values.max():.4g}}}, " if values.max() < 0.5 else ""
        return [
            Finding(
                rule="gripper never crosses 0.5",
                severity="warning",
                where=f"action {name}",
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
            where=f"action {name}",
            evidence=f"{percent(between)} of the steps lie between 0.05 and 0.95",
            cure="grids have a token for open and one for closed, split at 0.5; to make the "
            "switch sharp: {binarize_backward: {open_above: 0.95, closed_below: 0.05}}",
        )
    ]


def _varies(raw: Float64[np.ndarray, "N n"]) -> bool:
    """Whether a raw gripper column moves, rather than trembles."""
    spread = float(np.ptp(raw))
    return spread > max(1e-3, MOVES * float(np.abs(raw).max()))


def _never_crosses(
    values: Float64[np.ndarray, " N"], term: Term, raw: Float64[np.ndarray, "N n"], name: str
) -> Finding:
    """A column that moves, of which the card makes one state."""
    low, high = float(raw.min()), float(raw.max())
    thresholds = [op for op in term.ops if op.name in ("binarize_backward", "rel_to_abs")]
    said = "it is less than 0.05 apart"
    cure = f"ops: [{{scale: {1 / max(abs(low), abs(high)):.4g}}}, {{clip: [0, 1]}}]"
    for op in thresholds:
        if op.name == "binarize_backward":
            said = f"open_above is {op.args[0]:g} and closed_below {op.args[1]:g}"
            middle, step = (low + high) / 2, (high - low) / 4
            cure = (
                f"thresholds inside what the column does, e.g. {{binarize_backward: {{open_above: "
                f"{middle + step:.3g}, closed_below: {middle - step:.3g}}}}}"
            )
        else:
            said = f"eps is {op.args[0]:g}"
            cure = f"an eps below {max(abs(low), abs(high)):.3g}"
    return Finding(
        rule="gripper never crosses its threshold",
        severity="warning",
        where=f"action {name}",
        evidence=f"{term} moves, from {low:.4g} to {high:.4g}, but {said}, so the standard gripper "
        f"is {values[0]:.4g} in all {len(values)} steps",
        cure=f"give the gripper's term {cure}",
    )


def gripper_inverted(
    gripper: Series,
    state: Series | None,
    *,
    source: str = "",
    turned: bool = False,
    name: str = "gripper",
) -> list[Finding]:
    """Signs that 1 means closed: the measured opening, how episodes start, the column's name.

    Args:
        gripper: (N, 1) standard command, 1 = open.
        state: (N, 1) what the card calls the measured opening, larger = wider, or None.
        source: key of the raw column.
        turned: whether the card's ops turn it around (invert, rel_to_abs).
        name: of the gripper.
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
    column = source.rsplit(".", 1)[-1].lower()
    if "clos" in column and not turned:
        evidence.append(f"the column is called {column!r} and is not inverted")
    if not evidence:
        return []
    return [
        Finding(
            rule="gripper inverted",
            severity="warning",
            where=f"action {name}",
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
