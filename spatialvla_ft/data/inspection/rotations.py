"""Smells of rotations: quaternions read as angles, degrees, angles that wrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spatialvla_ft.data.inspection.findings import Finding, percent
from spatialvla_ft.data.inspection.series import Series
from spatialvla_ft.data.terms import Term

UNIT = 1e-3
"""Distance from length 1 up to which four numbers pass for a unit quaternion."""
DEGREES = 180 / np.pi


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
    """Angles that are too large for radians, or 57 times the change of the state."""
    evidence = ""
    size = np.quantile(np.abs(rotation.values), 0.99, axis=0)
    limit = np.pi if delta else 2 * np.pi * 1.05
    if delta and state is not None and rotation.has_next.any():
        changes = (state.changes + np.pi) % (2 * np.pi) - np.pi
        ratio = np.median(np.abs(rotation.now)) / max(float(np.median(np.abs(changes))), 1e-9)
        if DEGREES / 1.5 < ratio < DEGREES * 1.5:
            evidence = f"the action is {ratio:.0f} times the change of the state; 180/pi is 57.3"
    if not evidence and size.max() > limit:
        worst = int(np.argmax(size))
        evidence = f"99 % quantile of |{names[worst]}| is {size[worst]:.3g}" + (
            ", more than half a turn per step" if delta else ", more than a whole turn"
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


def wrapped_angles(
    angles: Series, names: Sequence[str], *, delta: bool, where: str = "action"
) -> list[Finding]:
    """Jumps of nearly a whole turn: +pi next to -pi."""
    jumps = angles.values if delta else angles.changes
    near = np.abs(np.abs(jumps) - 2 * np.pi) < 0.6
    # Half a turn and more in one step, in every row, is degrees rather than a wrap.
    if not near.any() or np.median(np.abs(jumps)) > 1:
        return []
    count = near.sum(axis=0)
    listed = ", ".join(f"{n} {c}" for n, c in zip(names, count, strict=True) if c)
    cure = (
        "take the recorded action instead of the difference of the state, or wrap differences to "
        "+-pi when the data is made"
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
