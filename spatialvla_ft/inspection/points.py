"""The points that instructions name: how many steps have them, and whether any camera sees them.

A point in another frame or unit than the card promises teaches nonsense without an error. The
cameras know better: what an instruction names is nearly always in some picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.standardise import Standardised
from spatialvla_ft.data.projection import Placed, in_picture, placed
from spatialvla_ft.data.sampler import evenly_spaced
from spatialvla_ft.data.store import Source
from spatialvla_ft.inspection.findings import Finding, percent

LOOKED_AT = 40
"""Steps of an episode at which points are projected."""
MOSTLY = 0.5
"""Share of the points that must be in some picture; and by which another reading convinces."""
REACH = 5.0
"""Metres from a base within which things are reached for."""

Points = Float64[np.ndarray, "N 3"]
Cameras = Sequence[Placed]


@dataclass(frozen=True)
class PointColumn:
    """One column of points.

    Attributes:
        field: of a `Sample`.
        key: of the column.
        steps: looked at.
        known: of those, how many have a point.
        low, high: (x, y, z) between which the points lie, metres; empty without points.
        seen: camera -> share of the points looked for that lie in its picture; only of cameras
            with K and pose.
        findings: what smells.
    """

    field: str
    key: str
    steps: int
    known: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    seen: dict[str, float]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {k: v for k, v in vars(self).items() if k not in ("field", "findings")}


def look_at_points(
    source: Source,
    card: Card,
    standard: Sequence[Standardised],
    episodes: Sequence[int],
    sizes: Mapping[str, tuple[int, int]],
) -> tuple[PointColumn, ...]:
    """Every column of points that the card names.

    Args:
        source: the dataset.
        card: how it is read.
        standard: standard steps of the episodes looked at.
        episodes: their numbers.
        sizes: (width, height) of the pictures, by camera.
    """
    return tuple(
        _column(source, card, field, key, standard, episodes, sizes)
        for field, key in card.points.items()
    )


def _column(
    source: Source,
    card: Card,
    field: str,
    key: str,
    standard: Sequence[Standardised],
    episodes: Sequence[int],
    sizes: Mapping[str, tuple[int, int]],
) -> PointColumn:
    where = f"{field}: {key}"
    values = [_of_steps(source, key, e, t) for e, t in zip(episodes, standard, strict=True)]
    widths = {part.shape[1] for part in values}
    if widths != {3}:
        steps = sum(map(len, values))
        return PointColumn(field, key, steps, 0, (), (), {}, (_width(where, sorted(widths)),))
    joined = np.concatenate(values)
    known = joined[np.isfinite(joined).all(axis=1)]
    points, views = _looked_at(source, card, values, standard, episodes, sizes)
    found = _not_points(where, joined)
    if not len(known):
        found += _none(where) if field == "target_point" else []  # many tasks name one thing only
    elif views:
        found += out_of_view(where, points, views)
    else:
        found += _no_pose(where, list(card.cameras or {}))
    return PointColumn(
        field=field,
        key=key,
        steps=len(joined),
        known=len(known),
        low=tuple(known.min(axis=0).tolist()) if len(known) else (),
        high=tuple(known.max(axis=0).tolist()) if len(known) else (),
        seen={slot: float(in_picture(points, cameras).mean()) for slot, cameras in views.items()},
        findings=tuple(found),
    )


def _looked_at(
    source: Source,
    card: Card,
    values: Sequence[Points],
    standard: Sequence[Standardised],
    episodes: Sequence[int],
    sizes: Mapping[str, tuple[int, int]],
) -> tuple[Points, dict[str, list[Placed]]]:
    """Some points of every episode, and where the cameras with K and pose stood at each."""
    points: list[Float64[np.ndarray, 3]] = []
    views: dict[str, list[Placed]] = {}
    for part, episode, trajectory in zip(values, episodes, standard, strict=True):
        rows = np.flatnonzero(np.isfinite(part).all(axis=1))
        for row in rows[evenly_spaced(len(rows), LOOKED_AT)]:
            points.append(part[row])
            for slot, size in sizes.items():
                camera = placed(source, card, slot, size, episode, int(trajectory.steps[row]))
                if camera is not None:
                    views.setdefault(slot, []).append(camera)
    return np.array(points).reshape(-1, 3), views


def _of_steps(source: Source, key: str, episode: int, trajectory: Standardised) -> Points:
    """(T, width) values at the standard steps; one value per episode is repeated."""
    values = np.asarray(source.trajectory(episode, (key,))[key], np.float64)
    per = next((field.per for field in source.fields if field.key == key), "step")
    if per == "episode":
        return np.tile(values.reshape(1, -1), (len(trajectory.steps), 1))
    rows: Points = values.reshape(len(values), -1)[trajectory.steps]
    return rows


MILLIMETRES = "millimetres"
READINGS: dict[str, tuple[Callable[[Points], Points], Callable[[Placed], Placed], str]] = {
    MILLIMETRES: (
        lambda points: points * 1e-3,
        lambda camera: camera,
        "write the column in metres",
    ),
    "points of the camera's own frame": (
        lambda points: points,
        lambda camera: replace(camera, pose=np.eye(4)),
        "move the points into the base frame: pose @ (x, y, z, 1)",
    ),
    "seen by a pose that leads from the base to the camera": (
        lambda points: points,
        lambda camera: replace(camera, pose=np.linalg.inv(camera.pose)),
        "invert the extrinsics: a card's pose leads from the camera to the base",
    ),
}
"""Other readings of points and poses: how to read them so, and what to do if that fits."""


def out_of_view(where: str, points: Points, views: Mapping[str, Cameras]) -> list[Finding]:
    """Points that lie in no camera's picture, with the reading under which they would.

    Args:
        where: name of the column.
        points: (N, 3) as stored.
        views: of every camera with K and pose, where it stood at each of the points.
    """
    share = _seen_by_any(points, views)
    if share >= MOSTLY:
        return []
    fits, cures = [], []
    within_reach = float(np.median(np.linalg.norm(points, axis=1))) < REACH
    for name, (read, place, cure) in READINGS.items():
        if name == MILLIMETRES and within_reach:  # all near the base then, which many cameras see
            continue
        other = _seen_by_any(read(points), {s: list(map(place, c)) for s, c in views.items()})
        if other >= MOSTLY and other > share + 0.2:
            fits.append(f"read as {name}, {percent(other)} are")
            cures.append(cure)
    middle = ", ".join(f"{value:.4g}" for value in np.median(points, axis=0))
    cameras = ", ".join(views)
    return [
        Finding(
            rule="point out of view",
            severity="error" if share == 0 or fits else "warning",
            where=where,
            evidence="; ".join(
                [
                    f"{percent(share)} of {len(points)} points are inside a picture ({cameras}); "
                    f"their median is ({middle})",
                    *fits,
                ]
            ),
            cure=" or ".join(cures)
            or "points are x, y, z in metres in the robot's base frame: check frame and unit, K "
            "and extrinsics (camera to base) of these cameras",
        )
    ]


def _seen_by_any(points: Points, views: Mapping[str, Cameras]) -> float:
    seen = [in_picture(points, cameras) for cameras in views.values()]
    return float(np.any(seen, axis=0).mean()) if len(points) else 0.0


def _width(where: str, widths: Sequence[int]) -> Finding:
    return Finding(
        rule="point of another width",
        severity="error",
        where=where,
        evidence=f"{' or '.join(map(str, widths))} numbers per step",
        cure="name a column of three: x, y, z in metres in the robot's base frame",
    )


def _not_points(where: str, values: Points) -> list[Finding]:
    unknown = np.isnan(values)
    bad = np.isinf(values).any(axis=1) | (unknown.any(axis=1) & ~unknown.all(axis=1))
    if not bad.any():
        return []
    first = int(np.flatnonzero(bad)[0])
    return [
        Finding(
            rule="point not finite",
            severity="error",
            where=where,
            evidence=f"{int(bad.sum())} of {len(bad)} steps hold infinity, or NaN beside numbers; "
            f"the first is {values[first].tolist()}",
            cure="write three NaN where there is no point",
        )
    ]


def _none(where: str) -> list[Finding]:
    return [
        Finding(
            rule="no point",
            severity="warning",
            where=where,
            evidence="no step has one",
            cure="find points in hindsight with spatialvla-ft data annotate, or take the line out "
            "of the card",
        )
    ]


def _no_pose(where: str, cameras: Sequence[str]) -> list[Finding]:
    return [
        Finding(
            rule="point without a camera's pose",
            severity="warning",
            where=where,
            evidence=f"none of the cameras ({', '.join(cameras) or 'none'}) has both intrinsics "
            "and extrinsics, so nothing tells where the points are in a picture",
            cure="extrinsics: {primary: <column of 4 x 4, camera to base, metres>}; "
            "train.point_loss needs it",
        )
    ]
