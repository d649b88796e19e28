"""Smells of what the cameras see: frozen, out of step, depth in another unit, an implausible K.

What each camera shows: size, K, depth, a few pictures, and the smells of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from numpy.typing import NDArray

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.fields import Intrinsics
from spatialvla_ft.data.cards.standardise import Standardised
from spatialvla_ft.data.decode import to_metres
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.projection import stored_matrix
from spatialvla_ft.data.sampler import evenly_spaced
from spatialvla_ft.data.stats.statistics import normalised_dimensions
from spatialvla_ft.data.store import Source
from spatialvla_ft.depth.metres import FAR, NEAR
from spatialvla_ft.inspection.findings import Finding, percent
from spatialvla_ft.inspection.series import Series, correlation, longest_run

FROZEN_RUN = 5
"""Equal frames in a row, with the arm moving, that mean a camera hangs."""
LAGS = 4
FIELD = (20.0, 140.0)
"""Degrees between which a camera's horizontal field of view lies."""


def field_of_view(K: Float64[np.ndarray, "3 3"], width: int) -> float:
    """Horizontal field of view, degrees."""
    return math.degrees(2 * math.atan2(width, 2 * float(K[0, 0])))


def frozen(
    change: Series, moving: Bool[np.ndarray, " M"], camera: str, episodes: Sequence[int]
) -> list[Finding]:
    """Equal frames in a row while the arm moves.

    Args:
        change: (M, 1) mean change of a pixel from each frame to the next, grey levels.
        moving: (M,) whether the arm moves in that step.
        camera: its slot.
        episodes: number of every episode of `change`.
    """
    stuck = (change.values[:, 0] == 0) & moving
    runs = [longest_run(part) for part in np.split(stuck, np.cumsum(change.lengths)[:-1])]
    if not runs or max(runs) < FROZEN_RUN:
        return []
    worst = int(np.argmax(runs))
    return [
        Finding(
            rule="frozen camera",
            severity="warning",
            where=f"camera {camera}",
            evidence=f"{max(runs) + 1} equal frames in a row in episode {episodes[worst]} while "
            f"the arm moves; {percent(float(stuck.mean()))} of all steps looked at",
            cure="leave those episodes out; the pictures say nothing of what the arm does",
        )
    ]


def out_of_step(change: Series, speed: Series, camera: str) -> list[Finding]:
    """Pictures that change some steps before or after the arm moves.

    Args:
        change: (M, 1) mean change of a pixel from each frame to the next.
        speed: (M, 1) how far the action of the first of both frames moves the arm.
        camera: its slot.
    """
    if len(change) < 40:
        return []
    scores = {}
    for lag in range(-LAGS, LAGS + 1):
        parts = []
        for a, b in zip(speed.episodes(), change.episodes(), strict=True):
            count = len(a) - abs(lag)
            if count > 0:
                parts.append((a[max(0, -lag) :][:count, 0], b[max(0, lag) :][:count, 0]))
        if parts:
            scores[lag] = correlation(*(np.concatenate(side) for side in zip(*parts, strict=True)))
    best = max(scores, key=lambda lag: scores[lag])
    if abs(best) < 2 or scores[best] < 0.5 or scores[best] < scores[0] + 0.2:
        return []
    when = f"{abs(best)} steps {'after' if best > 0 else 'before'} the action"
    return [
        Finding(
            rule="pictures out of step",
            severity="note",
            where=f"camera {camera}",
            evidence=f"the picture changes most {when}: correlation {scores[best]:.2f} there, "
            f"{scores[0]:.2f} in the same step",
            cure="check how actions and pictures were paired; a robot with a slow controller "
            "shows one or two steps of delay",
        )
    ]


def depth_smells(
    maps: Sequence[Float32[np.ndarray, "H W"]], scale: float, camera: str
) -> list[Finding]:
    """Depth in another unit, with many holes, or constant.

    Args:
        maps: depth in metres as the card's scale makes it, 0 where unknown.
        scale: the card's depth_scale.
        camera: its slot.
    """
    if not maps:
        return []
    values = np.concatenate([depth.ravel() for depth in maps])
    known = values[values > 0]
    where, found = f"depth {camera}", []
    holes = 1 - len(known) / len(values)
    if holes > 0.5:
        found.append(
            Finding(
                rule="depth holes",
                severity="warning",
                where=where,
                evidence=f"{percent(holes)} of the pixels of {len(maps)} maps are unknown (0)",
                cure="check the decoding; a sensor this blind may be worse than an estimator",
            )
        )
    if not len(known):
        return found
    middle = float(np.median(known))
    if not NEAR <= middle <= FAR:
        better = scale * 1e-3 if middle > FAR else scale * 1e3
        found.append(
            Finding(
                rule="depth unit",
                severity="error",
                where=where,
                evidence=f"the median depth is {middle:.4g} m with depth_scale {scale:g}; a "
                f"robot's camera sees {NEAR} to {FAR:g} m",
                cure=f"depth_scale: {better:g} would make it {middle * better / scale:.3g} m",
            )
        )
    if float(known.max() - known.min()) < 1e-6:
        found.append(
            Finding(
                rule="depth constant",
                severity="warning",
                where=where,
                evidence=f"every known pixel is {middle:.4g} m",
                cure="leave depth out of the card: it holds nothing",
            )
        )
    return found


def guess_depth_scale(stored: NDArray[np.generic]) -> float:
    """Metres per unit under which a robot's camera sees 0.15 to 4 m, of the units in use."""
    values = stored.astype(np.float64)
    known = values[values > 0]
    middle = float(np.median(known)) if len(known) else 1.0
    for scale in (1.0, 1e-3, 1e-4, 2.5e-4):
        if 0.15 <= middle * scale <= 4:
            return scale
    return 1e-3 if middle > 100 else 1.0


def intrinsics_smells(
    K: Float64[np.ndarray, "3 3"], size: tuple[int, int], camera: str
) -> list[Finding]:
    """A K that does not fit its picture.

    Args:
        K: pinhole matrix, pixels.
        size: (width, height) of the picture that it is said to belong to.
        camera: its slot.
    """
    width, height = size
    fx, fy, cx, cy = (float(K[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    where = f"intrinsics {camera}"
    cure = f"intrinsics: {{{camera}: {{fx, fy, cx, cy, width, height}}}} with the size of the "
    cure += "picture that was calibrated; it is rescaled from there"

    def finding(rule: str, evidence: str) -> list[Finding]:
        return [Finding(rule=rule, severity="warning", where=where, evidence=evidence, cure=cure)]

    shape = [K[1, 0], K[2, 0], K[2, 1], K[2, 2] - 1]
    if not np.isfinite(K).all() or min(fx, fy) <= 0 or np.abs(shape).max() > 1e-6:
        return finding("K is no pinhole matrix", f"got {np.round(K, 3).tolist()}")
    ratios = 2 * cx / width, 2 * cy / height
    larger = float(np.mean(ratios))
    if abs(ratios[0] - ratios[1]) < 0.1 * larger and not 0.77 < larger < 1.3:
        return finding(
            "K of another picture size",
            f"principal point ({cx:.1f}, {cy:.1f}) is the centre of about {2 * cx:.0f} x "
            f"{2 * cy:.0f} pixels, the picture has {width} x {height}",
        )
    off = max(abs(cx - width / 2) / width, abs(cy - height / 2) / height)
    if off > 0.2:
        return finding(
            "K off centre",
            f"principal point ({cx:.1f}, {cy:.1f}) in a picture of {width} x {height}: "
            f"{percent(off)} of a side from its centre",
        )
    angle = field_of_view(K, width)
    if not FIELD[0] <= angle <= FIELD[1]:
        return finding(
            "K with an odd field of view",
            f"fx {fx:.1f} on {width} pixels is a field of view of {angle:.0f} degrees; cameras "
            f"have {FIELD[0]:.0f} to {FIELD[1]:.0f}",
        )
    return []


def missing_intrinsics(cameras: Sequence[str], known: Sequence[str]) -> list[Finding]:
    """Cameras without K."""
    missing = [camera for camera in cameras if camera not in known]
    if not missing:
        return []
    return [
        Finding(
            rule="K missing",
            severity="warning",
            where=f"camera {', '.join(missing)}",
            evidence=f"no intrinsics for {len(missing)} of {len(cameras)} cameras",
            cure=f"intrinsics: {{{missing[0]}: {{fx: ..., fy: ..., cx: ..., cy: ..., width: ..., "
            "height: ...}}, or the column that holds K; the position encoding needs it",
        )
    ]


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
            else field_of_view(self.K, self.size[0]),
            "depth": self.depth_key,
            "depth_range_m": self.depth_range,
        }


def view_cameras(
    source: Source, card: Card, standard: list[Standardised], episodes: list[int]
) -> dict[str, View]:
    """Look through every camera of the card, at a few episodes."""
    views = {slot: _look(source, card, slot, standard, episodes) for slot in card.cameras or {}}
    missing = missing_intrinsics(
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
    sheet, maps = [], []
    depth_key = card.depth[slot].path if slot in card.depth else None
    chosen = evenly_spaced(len(episodes), ROWS)
    for i in chosen:
        steps = standard[i].steps
        at = steps[evenly_spaced(len(steps), COLUMNS)]
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
        found += intrinsics_smells(K, size, slot)
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
    found += depth_smells(maps, card.depth_scale or 1.0, slot)
    if first is not None:
        found += _in_motion(source, card, slot, {episodes[i]: standard[i] for i in chosen})
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
    return stored_matrix(source.value(camera, episode, 0), f"{source.name}, {slot}")


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
    still = frozen(change, moving, slot, list(watched))
    return still + out_of_step(change, speed, slot)
