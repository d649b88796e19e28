"""Smells of the action's numbers: constant, not finite, absolute, far out, standing still.

Smells of rotations: quaternions read as angles, degrees, angles that wrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64

from spatialvla_ft.actions.ranges import noise_widths, short_unit
from spatialvla_ft.actions.spaces import RawActions
from spatialvla_ft.data.cards.terms import Term
from spatialvla_ft.data.stats.statistics import compute_statistics
from spatialvla_ft.inspection.findings import Finding, percent
from spatialvla_ft.inspection.series import Series, correlation, longest_run

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


UNIT = 1e-3
"""Distance from length 1 up to which four numbers pass for a unit quaternion."""
DEGREES = 180 / np.pi
NEAR_A_TURN = 0.6
"""Radians between a jump and a whole turn, up to which it is an angle that wraps."""


def quaternion_starts(series: Series) -> list[int]:
    """First column of every four in a row that have unit length in 99 % of the steps.

    Four that hardly vary are none: any constant unit vector would pass.
    """
    values = series.values
    found: list[int] = []
    for first in range(values.shape[1] - 3):
        four = values[:, first : first + 4]
        unit = np.abs(np.linalg.norm(four, axis=1) - 1) < UNIT
        varying = (four.std(axis=0) > 1e-4).sum() >= 2
        overlaps = found and first < found[-1] + 4
        if unit.mean() >= 0.99 and varying and not overlaps:
            found.append(first)
    return found


def quaternion_as_euler(
    columns: Mapping[str, Series], terms: Mapping[str, Sequence[Term]]
) -> list[Finding]:
    """Terms that take columns of a quaternion as they are, without quat_to_euler.

    Args:
        columns: raw columns by key.
        terms: terms of the rotation and of a proprio that calls itself Euler, by the name of
            their line in the card.
    """
    found = []
    for line, parts in terms.items():
        for term in parts:
            series = columns.get(term.path or "")
            if series is None or any(op.name == "quat_to_euler" for op in term.ops):
                continue
            taken = set(range(series.values.shape[1])[term.columns])
            for first in quaternion_starts(series):
                four = range(first, first + 4)
                if not taken & set(four):
                    continue
                now, then = series.columns(list(four)).now, series.columns(list(four)).then
                flips = float(((now * then).sum(axis=1) < 0).mean()) if len(now) else 0.0
                found.append(
                    Finding(
                        rule="quaternion read as Euler angles",
                        severity="error",
                        where=f"{line}: {term.path}",
                        evidence=f"columns {first} to {first + 3} have length 1 in at least 99 % "
                        f"of {len(series)} steps, as a quaternion has; its sign jumps in "
                        f"{percent(flips)} of the steps",
                        cure=f'write {{src: "{term.path}[{first}:{first + 4}]", ops: '
                        "[{quat_to_euler: xyzw}]}; put w last if the data has it first",
                    )
                )
    return found


def degrees(
    rotation: Series, state: Series | None, names: Sequence[str], *, delta: bool
) -> list[Finding]:
    """Angles that are too large for radians, or 57 times the change of the state.

    Differences of angles that wrap are left out: they are a whole turn too long, whatever the
    unit. One quantile says little then, so two must agree: that of 99 % and that of 90 %.
    """
    evidence = ""
    sizes = np.where(_wraps(rotation.values) & delta, np.nan, np.abs(rotation.values))
    known = ~np.isnan(sizes).all(axis=0)
    most, many = np.zeros((2, sizes.shape[1]))
    most[known], many[known] = np.nanquantile(sizes[:, known], [0.99, 0.9], axis=0)
    if delta and state is not None and rotation.has_next.any():
        changes = (state.changes + np.pi) % (2 * np.pi) - np.pi
        ratios = _ratios(sizes[rotation.has_next], np.abs(changes))
        if all(DEGREES / 1.5 < ratio < DEGREES * 1.5 for ratio in ratios):
            evidence = (
                f"the action is {ratios[0]:.0f} times the change of the state in the median and "
                f"{ratios[1]:.0f} times in the 90 % quantile; 180/pi is 57.3"
            )
    limits = (np.pi, np.pi / 4) if delta else (2 * np.pi * 1.05,) * 2
    large = (most > limits[0]) & (many > limits[1])
    if not evidence and large.any():
        worst = int(np.argmax(np.where(large, most, 0)))
        evidence = (
            f"99 % quantile of |{names[worst]}| is {most[worst]:.3g}, more than "
            f"{'half a turn per step' if delta else 'a whole turn'}; 90 %: {many[worst]:.3g}"
        )
    if not evidence:
        return []
    return [
        Finding(
            rule="degrees instead of radians",
            severity="error",
            where=f"action {', '.join(names)}",
            evidence=evidence,
            cure="scale the term: {src: ..., ops: [{scale: 0.017453293}]}",
        )
    ]


def _wraps(angles: Float64[np.ndarray, "N k"]) -> Bool[np.ndarray, "N k"]:
    """Values near a whole turn, in radians: differences across +pi and -pi."""
    near: Bool[np.ndarray, "N k"] = np.abs(np.abs(angles) - 2 * np.pi) < NEAR_A_TURN
    return near


def _ratios(
    action: Float64[np.ndarray, "M k"], change: Float64[np.ndarray, "M k"]
) -> tuple[float, float]:
    """Sizes of actions by sizes of changes in the median and in the 90 % quantile; NaN is none."""
    known = np.isfinite(action)
    if not known.any():
        return 0.0, 0.0
    ours, theirs = (np.quantile(part[known], [0.5, 0.9]) for part in (action, change))
    middle, upper = (ours / np.maximum(theirs, 1e-9)).tolist()
    return middle, upper


def wrapped_angles(
    angles: Series, names: Sequence[str], *, delta: bool, where: str = "action"
) -> list[Finding]:
    """Jumps of nearly a whole turn: +pi next to -pi."""
    jumps = angles.values if delta else angles.changes
    near = _wraps(jumps)
    # Half a turn and more in one step, in every row, is degrees rather than a wrap.
    if not near.any() or np.median(np.abs(jumps)) > 1:
        return []
    count = near.sum(axis=0)
    listed = ", ".join(f"{n} {c}" for n, c in zip(names, count, strict=True) if c)
    cure = (
        "take the recorded action instead of the difference of the state, or give the term "
        "ops: [wrap], which takes whole turns out of it"
        if delta
        else "do not take differences of it (relabel); a network sees +pi and -pi as far apart"
    )
    return [
        Finding(
            rule="wrapped angles",
            severity="warning" if delta else "note",
            where=where,
            evidence=f"jumps of 2 pi, steps per dimension: {listed}, of {len(jumps)}",
            cure=cure,
        )
    ]
