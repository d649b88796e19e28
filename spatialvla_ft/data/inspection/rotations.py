"""Smells of rotations: quaternions read as angles, degrees, angles that wrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64

from spatialvla_ft.data.inspection.findings import Finding, percent
from spatialvla_ft.data.inspection.series import Series
from spatialvla_ft.data.terms import Term

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
