"""Smells of the action's numbers: constant, not finite, absolute, far out, standing still."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from spatialvla_ft.actions.ranges import noise_widths, short_unit
from spatialvla_ft.actions.spaces import RawActions
from spatialvla_ft.data.inspection.findings import Finding, percent
from spatialvla_ft.data.inspection.series import Series, correlation, longest_run
from spatialvla_ft.data.statistics import compute_statistics

CONSTANT = 1e-6
"""Spread, as a share of the value's size or of 1, below which a dimension is constant."""
STILL = 1e-3
"""Motion below this share of the dimension's q01..q99 range is none."""
MANY_STILL = 0.2
FAR_OUT = 3.0
"""Distance beyond q01 or q99, in units of q99 - q01, that is worth a warning."""


def not_finite(columns: dict[str, Series], episodes: Sequence[int]) -> list[Finding]:
    """NaN or infinity in a column."""
    found = []
    for name, series in columns.items():
        bad = ~np.isfinite(series.values).all(axis=1)
        if bad.any():
            which, step = series.place(int(np.flatnonzero(bad)[0]))
            found.append(
                Finding(
                    rule="not finite",
                    severity="error",
                    where=name,
                    evidence=f"{int(bad.sum())} of {len(bad)} steps hold NaN or infinity, the "
                    f"first is step {step} of episode {episodes[which]}",
                    cure="mend the data, or leave the column (or those episodes) out",
                )
            )
    return found


def constant_dimensions(
    action: Series, names: Sequence[str], declared: Sequence[bool]
) -> list[Finding]:
    """Dimensions that never change, save those that the card itself sets to a constant."""
    found = []
    for name, column, known in zip(names, action.values.T, declared, strict=True):
        spread = float(column.max() - column.min())
        if known or spread > CONSTANT * max(1.0, float(np.abs(column).max())):
            continue
        value = float(column[0])
        found.append(
            Finding(
                rule="constant dimension",
                severity="note" if value == 0 else "warning",
                where=f"action {name}",
                evidence=f"{value:g} in all {len(column)} steps",
                cure="check that the term reads the right column; if the robot never moves so, "
                "write zeros(1) to say it",
            )
        )
    return found


def hardly_moves(action: Series, names: Sequence[str], units: Sequence[str]) -> list[Finding]:
    """Dimensions whose numbers are so small that normalising blows noise up to full scale."""
    found = []
    low, high = np.quantile(action.values, [0.01, 0.99], axis=0)
    widths = noise_widths(units)
    for i, (name, unit, noise) in enumerate(zip(names, units, widths, strict=True)):
        spread, whole = float(high[i] - low[i]), float(np.ptp(action.values[:, i]))
        if whole <= CONSTANT or spread >= noise or whole >= 3 * noise:  # rare motion is no noise
            continue
        found.append(
            Finding(
                rule="hardly moves",
                severity="note",
                where=f"action {name}",
                evidence=f"98 % of the steps lie within {spread:.2g} {unit}, all within "
                f"{whole:.2g}; normalising stretches them over -1 to 1 all the same",
                cure="if the robot does not really move so, write zeros(1) in its place",
            )
        )
    return found


def rare_motion(action: Series, names: Sequence[str], units: Sequence[str]) -> list[Finding]:
    """Dimensions that rest in nearly all steps, so that q01..q99 clips their motion away."""
    every = np.ones(len(names), bool)
    values = RawActions(action.values.astype(np.float32))
    known = compute_statistics(values, every, units=units)
    if known.quantiles is None:
        return []
    low, high = known.quantiles
    beyond = ((action.values < low - 1e-9) | (action.values > high + 1e-9)).mean(axis=0)
    return [
        Finding(
            rule="rare motion",
            severity="warning",
            where=f"action {names[i]}",
            evidence=f"q01..q99 is {low[i]:.3g}..{high[i]:.3g}, {percent(float(beyond[i]))} of the "
            f"steps lie beyond and reach {known.reach[i]:.3g}{short_unit(units[i])}",
            cure=f"training takes {known.q01[i]:.3g}..{known.q99[i]:.3g} for its range, so the "
            "motion is kept (a checkpoint with q01..q99 as its range loses it); there are few "
            "examples of it, so record more",
        )
        for i in np.flatnonzero(known.widened).tolist()
    ]


def absolute_or_delta(
    action: Series, state: Series | None, names: Sequence[str], *, expect_delta: bool
) -> list[Finding]:
    """Whether values are where to go (absolute) or how far (delta), against what is expected.

    With the state, by correlation: with the next state or with the change of the state. Without,
    a position is far from zero at all times and changes little from step to step.

    Args:
        action: (N, k) values of one unit, e.g. the translation.
        state: (N, k) the same quantities measured, or None.
        names: of the k dimensions.
        expect_delta: what the card says.
    """
    moving = [i for i in range(action.values.shape[1]) if np.ptp(action.values[:, i]) > 1e-9]
    if not moving or action.has_next.sum() < 10:
        return []
    verdict, evidence = None, ""
    if state is not None:
        now, later, change = action.now, state.then, state.changes
        to_state = float(np.mean([correlation(now[:, i], later[:, i]) for i in moving]))
        to_change = float(np.mean([correlation(now[:, i], change[:, i]) for i in moving]))
        evidence = (
            f"correlation with the next state {to_state:.2f}, with the change of the state "
            f"{to_change:.2f} (mean over {', '.join(names[i] for i in moving)})"
        )
        if to_state > 0.9 and to_state > to_change + 0.2:
            verdict = "absolute"
        elif to_change > 0.5 and to_change > to_state + 0.2:
            verdict = "delta"
    if verdict is None and expect_delta:
        size = np.linalg.norm(action.values, axis=1)
        middle = float(np.median(size))
        step = float(np.median(np.linalg.norm(action.changes, axis=1)))
        near = float(np.quantile(size, 0.1))
        if middle > 0.1 and step < 0.1 * middle and near > 0.5 * middle:
            verdict = "absolute"
            evidence = (
                f"median size {middle:.3g}, never small (10 % quantile {near:.3g}), but from step "
                f"to step it changes by {step:.3g} only; smooth and far from zero is a position"
            )
    if verdict is None or (verdict == "delta") == expect_delta:
        return []
    wanted = "delta" if expect_delta else "absolute"
    cures = {
        "absolute": "say how a change is made of it, e.g. relabel: {dims: [0, 6], from: "
        '"observation.state[0:6]", rule: next_minus_current}',
        "delta": "read the absolute column instead, or say in the card that these are deltas",
    }
    return [
        Finding(
            rule="absolute or delta",
            severity="error",
            where=f"action {', '.join(names)}",
            evidence=f"looks {verdict}, {wanted} is expected: {evidence}",
            cure=cures[verdict],
        )
    ]


def outliers(
    action: Series, names: Sequence[str], episodes: Sequence[int], rare: Sequence[str] = ()
) -> list[Finding]:
    """Values far outside of q01..q99: a glitch, or a scale that serves few steps.

    Not in the dimensions of `rare`, of which `rare_motion` tells already.
    """
    found = []
    low, high = np.quantile(action.values, [0.01, 0.99], axis=0)
    for i, name in enumerate(names):
        if f"action {name}" in rare:
            continue
        spread = high[i] - low[i]
        if spread < 1e-9:
            continue
        column = action.values[:, i]
        beyond = np.maximum(low[i] - column, column - high[i]) / spread
        row = int(np.argmax(beyond))
        if beyond[row] <= FAR_OUT:
            continue
        which, step = action.place(row)
        found.append(
            Finding(
                rule="outlier",
                severity="warning",
                where=f"action {name}",
                evidence=f"{column[row]:.4g} in step {step} of episode {episodes[which]}, q01..q99 "
                f"is {low[i]:.4g}..{high[i]:.4g}; {percent(float((beyond > 1).mean()))} of the "
                "steps lie more than one such range outside",
                cure="look at that episode; training clips to q01..q99, so a glitch is harmless "
                "but a real fast motion is lost",
            )
        )
    return found


def motion_sizes(action: Series, deltas: Bool[np.ndarray, " d"]) -> Float64[np.ndarray, "N d"]:
    """How far each step moves each dimension, as a share of the dimension's q01..q99.

    Of an absolute dimension that is the change since the step before, unknown (infinite) in the
    first step of an episode.
    """
    motion = np.full_like(action.values, np.inf)
    motion[np.flatnonzero(action.has_next) + 1] = action.changes
    motion[:, deltas] = action.values[:, deltas]
    spread = np.subtract(*np.quantile(action.values, [0.99, 0.01], axis=0))
    sizes: Float64[np.ndarray, "N d"] = np.abs(motion) / np.maximum(spread, 1e-12)
    return sizes


def no_ops(
    action: Series, gripper: Series | None, names: Sequence[str], deltas: Bool[np.ndarray, " d"]
) -> list[Finding]:
    """A large share of steps that move nothing and leave the gripper as it was."""
    within = motion_sizes(action, deltas) <= STILL
    still = np.asarray(within.all(axis=1))
    if gripper is not None:
        switched = (np.abs(gripper.changes) > 0.05).any(axis=1)
        still[np.flatnonzero(gripper.has_next)[switched] + 1] = False
    share = float(still.mean())
    if share <= MANY_STILL:
        return []
    ends = np.cumsum(action.lengths)[:-1]
    run = max(longest_run(part) for part in np.split(still, ends))
    each = within.mean(axis=0)
    listed = ", ".join(f"{n} {percent(float(s))}" for n, s in zip(names, each, strict=True))
    return [
        Finding(
            rule="no-ops",
            severity="warning",
            where="action",
            evidence=f"{percent(share)} of the steps move nothing, at most {run} in a row; still "
            f"per dimension: {listed}",
            cure="cut pauses when the data is made, or add a filter (drop_if_motion_is_zero); a "
            "policy learns to stand still from them",
        )
    ]
