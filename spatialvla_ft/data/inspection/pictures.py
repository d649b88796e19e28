"""Smells of what the cameras see: frozen, out of step, depth in another unit, an implausible K."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numpy.typing import NDArray

from spatialvla_ft.data.inspection.findings import Finding, percent
from spatialvla_ft.data.inspection.series import Series, correlation, longest_run
from spatialvla_ft.depth.metres import FAR, NEAR

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
