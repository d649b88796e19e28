"""What each camera shows: size, K, depth, a few pictures, and the smells of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray

from spatialvla_ft.data.camera_matrix import camera_matrix
from spatialvla_ft.data.card import Card
from spatialvla_ft.data.card_fields import Intrinsics
from spatialvla_ft.data.decode import to_metres
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.inspection import pictures as rules
from spatialvla_ft.data.inspection.findings import Finding
from spatialvla_ft.data.inspection.series import Series
from spatialvla_ft.data.inspection.source import Source
from spatialvla_ft.data.standardise import Standardised
from spatialvla_ft.data.statistics import normalised_dimensions

ROWS, COLUMNS = 4, 6
"""Episodes and moments of a contact sheet."""
LOSSY = 0.02
"""Mean difference, grey levels, up to which two frames of a compressed video are the same."""
WATCHED = 60
"""Frames of an episode that are compared with the next."""


@dataclass(frozen=True)
class View:
    """One camera.

    Attributes:
        key: of its pictures.
        size: (width, height) of the first picture, or None where there is none.
        K: for that picture, or None.
        depth_key: of its depth maps, or None.
        depth_range: 1 % and 99 % quantile of the depth in metres, or None.
        sheet: rows of pictures, (episode, [(step, picture), ...]).
        findings: what smells.
    """

    key: str
    size: tuple[int, int] | None
    K: Float64[np.ndarray, "3 3"] | None
    depth_key: str | None
    depth_range: tuple[float, float] | None
    sheet: tuple[tuple[int, tuple[tuple[int, UInt8[np.ndarray, "H W 3"]], ...]], ...]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; no pictures."""
        return {
            "key": self.key,
            "size": self.size,
            "K": None if self.K is None else self.K.tolist(),
            "field_of_view_deg": None
            if self.K is None or self.size is None
            else rules.field_of_view(self.K, self.size[0]),
            "depth": self.depth_key,
            "depth_range_m": self.depth_range,
        }


def view_cameras(
    source: Source, card: Card, standard: list[Standardised], episodes: list[int]
) -> dict[str, View]:
    """Look through every camera of the card, at a few episodes."""
    views = {slot: _look(source, card, slot, standard, episodes) for slot in card.cameras or {}}
    missing = rules.missing_intrinsics(
        list(views), [slot for slot, view in views.items() if view.K is not None]
    )
    if missing:
        slot = next(slot for slot, view in views.items() if view.K is None)
        old = views[slot]
        views[slot] = View(**{**old.__dict__, "findings": (*old.findings, *missing)})
    return views


def _look(
    source: Source, card: Card, slot: str, standard: list[Standardised], episodes: list[int]
) -> View:
    """What a camera shows, or the finding that it cannot be read."""
    try:
        return _view(source, card, slot, standard, episodes)
    except DatasetError as error:
        finding = Finding(
            rule="camera cannot be read",
            severity="error",
            where=f"camera {slot}",
            evidence=str(error),
            cure="mend the dataset, or take the camera out of the card",
        )
        return View((card.cameras or {})[slot].path, None, None, None, None, (), (finding,))


def _view(
    source: Source, card: Card, slot: str, standard: list[Standardised], episodes: list[int]
) -> View:
    key = (card.cameras or {})[slot].path
    chosen = np.unique(np.linspace(0, len(episodes) - 1, min(ROWS, len(episodes))).astype(int))
    sheet, maps = [], []
    depth_key = card.depth[slot].path if slot in card.depth else None
    for i in chosen.tolist():
        steps = standard[i].steps
        at = steps[np.unique(np.linspace(0, len(steps) - 1, min(COLUMNS, len(steps))).astype(int))]
        shown = [(int(s), source.rgb(key, episodes[i], int(s))) for s in at]
        sheet.append((episodes[i], tuple((s, p) for s, p in shown if p is not None)))
        if depth_key and card.depth_scale:
            stored = source.stored_depth(depth_key, episodes[i], int(at[0]))
            maps += [] if stored is None else [to_metres(stored, card.depth_scale)]
    first = next((p for _, row in sheet for _, p in row), None)
    size = None if first is None else (first.shape[1], first.shape[0])
    K = None if size is None else _intrinsics(source, card, slot, episodes[0], size)
    found: list[Finding] = []
    if first is None:
        found.append(
            Finding(
                rule="no pictures",
                severity="warning",
                where=f"camera {slot}",
                evidence=f"{key} is empty in the episodes looked at",
                cure="take the camera out of the card, or leave those episodes out",
            )
        )
    if K is not None and size is not None:
        found += rules.intrinsics_smells(K, size, slot)
    if depth_key and card.depth_scale is None:
        found.append(
            Finding(
                rule="depth scale missing",
                severity="warning",
                where=f"depth {slot}",
                evidence=f"{depth_key} is there, but the card does not say its unit",
                cure="depth_scale: <metres per unit>, e.g. 0.001; without it depth is not used",
            )
        )
    found += rules.depth_smells(maps, card.depth_scale or 1.0, slot)
    if first is not None:
        found += _in_motion(source, card, slot, {episodes[i]: standard[i] for i in chosen.tolist()})
    known = np.concatenate([m[m > 0].ravel() for m in maps]) if maps else np.empty(0)
    reach = tuple(float(v) for v in np.quantile(known, [0.01, 0.99])) if len(known) else None
    return View(key, size, K, depth_key, reach, tuple(sheet), tuple(found))  # type: ignore[arg-type]


def _intrinsics(
    source: Source, card: Card, slot: str, episode: int, size: tuple[int, int]
) -> Float64[np.ndarray, "3 3"] | None:
    camera = card.intrinsics.get(slot)
    if camera is None:
        return None
    if isinstance(camera, Intrinsics):
        return camera.matrix(*size)
    return camera_matrix(source.value(camera, episode, 0), f"{source.name}, {slot}")


def _in_motion(
    source: Source, card: Card, slot: str, watched: dict[int, Standardised]
) -> list[Finding]:
    """Compare each of some frames with the next: does the picture follow the arm?"""
    key = (card.cameras or {})[slot].path
    stored = next((field.stored for field in source.fields if field.key == key), "")
    equal = 0 if stored in ("", "jpeg", "png", "image") else LOSSY
    differences: list[NDArray[np.float64]] = []
    speeds: list[NDArray[np.float64]] = []
    for episode, trajectory in watched.items():
        arm = normalised_dimensions(card.action_space_of(trajectory.action.shape[1]))
        steps = trajectory.steps[: WATCHED + 1]
        frames = [source.rgb(key, episode, int(step)) for step in steps]
        shown = [frame.astype(np.int16) for frame in frames if frame is not None]
        if len(shown) < len(frames) or len({frame.shape for frame in shown}) > 1:
            shown = []
        mean = np.array([np.abs(b - a).mean() for a, b in itertools.pairwise(shown)])
        mean[mean <= equal] = 0
        size = np.linalg.norm(trajectory.action[: len(mean), arm].astype(np.float64), axis=1)
        differences.append(mean)
        speeds.append(size)
    change, speed = Series.join(differences), Series.join(speeds)
    if not len(change) or not np.isfinite(speed.values).all():
        return []
    positive = speed.values[speed.values > 0]
    typical = float(np.median(positive)) if len(positive) else np.inf
    moving = speed.values[:, 0] > 0.25 * typical
    still = rules.frozen(change, moving, slot, list(watched))
    return still + rules.out_of_step(change, speed, slot)
