"""A prediction as a person at the robot reads it: where it wants to go, and how sure it is.

Three panels: the picture with the motion drawn in; the points that Ego3D encodes, with the motion
among them; and the space of the next motion itself, with the head's heatmap where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt8
from matplotlib.figure import Figure

from spatialvla_ft.actions.spaces import ActionSpace
from spatialvla_ft.data.projection import Placed, pixels
from spatialvla_ft.geometry.depth_maps import usable
from spatialvla_ft.policy.prediction import Heat, PredictedChunk
from spatialvla_ft.viz.embed import INK, VERMILION
from spatialvla_ft.viz.point_cloud import CameraFrame, pixel_points

DRAWN = 0.12
"""Metres as which the whole motion of a chunk is drawn in the scene."""
SHARE = 0.99
"""Share of the probability that is drawn; the rest are cells that hardly hold any."""
MOST = 4000
"""Cells that are drawn at most."""
HEAT = "magma_r"
NEAR = 0.5
"""Points within so many median depths of where the motion begins are drawn."""


@dataclass(frozen=True)
class Scene:
    """What was seen.

    Attributes:
        image: of the first camera.
        depth: (H, W) metres, 0 where unknown; None where there is none.
        K: pixels of that picture.
        pose: (4, 4) camera to robot base, metres; None where it is not known.
        tool: (3,) base frame, metres; None where it is not known.
    """

    image: UInt8[np.ndarray, "H W 3"]
    depth: Float[np.ndarray, "H W"] | None
    K: Float64[np.ndarray, "3 3"]
    pose: Float64[np.ndarray, "4 4"] | None = None
    tool: Float64[np.ndarray, 3] | None = None

    @property
    def origin(self) -> Float64[np.ndarray, 3]:
        """Where motions begin, base frame: the tool, or a point before the picture's middle."""
        if self.tool is not None:
            return self.tool
        known = np.zeros(0) if self.depth is None else self.depth[usable(self.depth)]
        away = float(np.median(known)) if known.size else 1.0
        height, width = self.image.shape[:2]
        ray = np.linalg.inv(self.K) @ np.array([width / 2, height / 2, 1.0]) * away
        return ray if self.pose is None else self.pose[:3, :3] @ ray + self.pose[:3, 3]


def plot_prediction(scene: Scene, chunk: PredictedChunk, instruction: str, arm: int = 0) -> Figure:
    """The panels, for one arm.

    Args:
        scene: what was seen.
        chunk: what was predicted from it.
        instruction: what was asked for.
        arm: which of several translations is drawn.
    """
    at = translations(chunk.space)
    figure = Figure(figsize=(14.5, 5.6))
    figure.text(0.02, 0.95, f"“{instruction}”", fontsize=13, weight="bold")
    figure.text(0.02, 0.905, _first(chunk), fontsize=9.5, color=INK)
    flat = figure.add_axes((0.02, 0.05, 0.29, 0.76))
    height, width = scene.image.shape[:2]
    flat.imshow(scene.image, extent=(0, width, height, 0), interpolation="nearest")
    flat.set_axis_off()
    if not at:
        flat.set_title("the action has no translation to draw", fontsize=10)
        return figure
    where = at[min(arm, len(at) - 1)]
    path = path_of(chunk, where)
    enlarged = DRAWN / max(float(np.linalg.norm(path, axis=1).max()), 1e-9)
    _in_picture(flat, scene, path * enlarged)
    flat.set_title(f"the next motion, {enlarged:.0f} times as long", fontsize=10)
    if scene.depth is not None:
        solid = figure.add_axes((0.32, 0.02, 0.35, 0.8), projection="3d", computed_zorder=False)
        _in_scene(solid, scene, path * enlarged, _heat_of(chunk, where), enlarged)
    last = figure.add_axes((0.68, 0.02, 0.27, 0.8), projection="3d", computed_zorder=False)
    _motion(last, chunk, where)
    return figure


def translations(space: ActionSpace) -> list[slice]:
    """Where the translations of three numbers lie, one per arm."""
    found, start = [], 0
    for group in space.groups:
        if group.role == "translation" and group.dim == 3:
            found.append(slice(start, start + 3))
        start += group.dim
    return found


def path_of(chunk: PredictedChunk, where: slice) -> Float64[np.ndarray, "K+1 3"]:
    """Offsets of the tool after each action, metres; deltas add up."""
    steps = chunk.actions[:, where]
    deltas = chunk.space.deltas[where]
    path = np.where(deltas, np.cumsum(steps, axis=0), steps - steps[:1])
    return np.vstack([np.zeros((1, 3)), path])


def _heat_of(chunk: PredictedChunk, where: slice) -> Heat | None:
    return next((heat for heat in chunk.heat.values() if heat.start == where.start), None)


def _first(chunk: PredictedChunk) -> str:
    """The first action in words, with what it is unsure of."""
    words = []
    for i, (name, unit) in enumerate(zip(chunk.space.names, chunk.space.units, strict=True)):
        sure = "" if chunk.spread is None else f" ± {chunk.spread[0, i]:.2g}"
        unit = f" {unit}" if len(unit) < 5 else ""
        words.append(f"{name} {chunk.actions[0, i]:+.2g}{sure}{unit}")
    return f"{chunk.head}:  " + ",  ".join(words)


def _in_picture(axes: Any, scene: Scene, path: Float64[np.ndarray, "K+1 3"]) -> None:
    """The path, through the camera's pose where it is known."""
    if scene.pose is None:
        axes.text(
            0.5, -0.03, "the camera's pose is not known: give --extrinsics to see the motion here",
            transform=axes.transAxes, ha="center", va="top", fontsize=9, color=INK,
        )  # fmt: skip
        return
    height, width = scene.image.shape[:2]
    camera = Placed(scene.K, scene.pose, (width, height))
    ends = pixels(scene.origin + path, [camera] * len(path))
    for start, end in pairwise(ends):
        if np.isfinite(start).all() and np.isfinite(end).all():
            for shade, thick in (("white", 4.4), (VERMILION, 2.4)):
                axes.annotate(
                    "", end, start, annotation_clip=False,
                    arrowprops={"arrowstyle": "-|>", "color": shade, "lw": thick, "shrinkA": 0,
                                "shrinkB": 0, "mutation_scale": 14},
                )  # fmt: skip
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _in_scene(
    axes: Any,
    scene: Scene,
    path: Float64[np.ndarray, "K+1 3"],
    heat: Heat | None,
    enlarged: float,
) -> None:
    """Coloured points, and the motion among them; base frame, or the camera's without a pose."""
    assert scene.depth is not None
    points, at = pixel_points(CameraFrame("scene", scene.image, scene.depth, scene.K))
    reach = NEAR * float(np.median(points[:, 2]))
    if scene.pose is not None:
        points = points @ scene.pose[:3, :3].T + scene.pose[:3, 3]
    near = np.linalg.norm(points - scene.origin, axis=1) <= reach
    points, colours = points[near], scene.image[at[near, 0], at[near, 1]] / 255
    if scene.pose is not None:
        names, turned = ("x", "y", "z"), (lambda p: p.T)
    else:
        names, turned = ("x, right", "z, forward", "y, up"), _upright
    axes.scatter(*turned(points), c=colours, s=5, marker="s", lw=0, depthshade=False, zorder=1)
    if scene.pose is not None:
        line = scene.origin + path
        axes.plot(*line.T, color="white", lw=4, zorder=4)
        axes.plot(*line.T, color=VERMILION, lw=2.2, marker="o", ms=3, zorder=5)
        if heat is not None:
            shown, shade = likely(heat, 0)
            cells = scene.origin + heat.points[shown] * enlarged
            axes.scatter(
                *cells.T, c=shade, cmap=HEAT, vmin=0, vmax=1, s=9, alpha=faint(shade), lw=0,
                depthshade=False, zorder=3,
            )  # fmt: skip
    _even(axes, turned(points).T, names)
    what = "heatmap and motion" if heat is not None else "motion"
    told = "base frame (m)" if scene.pose is not None else "camera frame (m), its pose not known"
    axes.set_title(f"{what} in the scene, {told}", fontsize=10)
    axes.view_init(elev=24, azim=-60)


def _motion(axes: Any, chunk: PredictedChunk, where: slice) -> None:
    """The space of the next motion: heatmap, or what is sure of it, about the predicted one."""
    first = chunk.actions[0, where]
    heat = _heat_of(chunk, where)
    drawn = [np.zeros((1, 3)), first[None]]
    if heat is not None:
        shown, shade = likely(heat, 0)
        cells = heat.points[shown]
        marks = axes.scatter(
            *cells.T, c=shade, cmap=HEAT, vmin=0, vmax=1, s=4 + 26 * shade, alpha=faint(shade),
            lw=0, depthshade=False, zorder=2,
        )  # fmt: skip
        bar = axes.figure.colorbar(marks, ax=axes, shrink=0.55, pad=0.17)
        bar.set_label("probability of a cell, of the best one's", fontsize=8.5)
        bar.ax.tick_params(labelsize=8)
        drawn.append(cells)
    elif chunk.spread is not None:
        for i, reach in enumerate(chunk.spread[0, where]):
            ends = np.repeat(first[None], 2, axis=0)
            ends[:, i] += (-reach, reach)
            axes.plot(*ends.T, color=INK, lw=1.4, zorder=3)
            drawn.append(ends)
    axes.plot(*np.stack([np.zeros(3), first]).T, color=VERMILION, lw=2, zorder=4)
    axes.scatter(*first, color=VERMILION, s=46, edgecolors="white", zorder=5, depthshade=False)
    axes.scatter(0, 0, 0, color=INK, s=16, zorder=5, depthshade=False)
    names = chunk.space.names[where]
    _even(axes, np.vstack(drawn), names, digits=3, zoom=1.15)
    sure = "heatmap" if heat is not None else "± one deviation" if chunk.spread is not None else ""
    axes.set_title(f"the first motion (m){', ' if sure else ''}{sure}", fontsize=10)
    axes.view_init(elev=24, azim=-60)


def likely(heat: Heat, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(cells that hold nearly all of the probability, each one's as a share of the best one's)."""
    chance = heat.chance[step]
    order = np.argsort(-chance)
    enough = int(np.searchsorted(np.cumsum(chance[order]), SHARE)) + 1
    shown = order[: min(enough, MOST)]
    return shown, chance[shown] / chance[shown].max()


def faint(shade: np.ndarray) -> np.ndarray:
    """Opacity of cells: what hardly counts hides nothing."""
    return 0.05 + 0.9 * shade


def _upright(points: Float64[np.ndarray, "N 3"]) -> Float64[np.ndarray, "3 N"]:
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]])


def _even(axes: Any, points: np.ndarray, names: Any, digits: int = 2, zoom: float = 0.92) -> None:
    """Equal scales on all axes, around what is drawn."""
    low, high = points.min(axis=0), points.max(axis=0)
    reach = max(float((high - low).max()), 10.0**-digits)
    middle = (low + high) / 2
    size = np.maximum(high - low, 0.35 * reach) * 1.06
    for axis, set_limits, centre, length, name in zip(
        (axes.xaxis, axes.yaxis, axes.zaxis),
        (axes.set_xlim, axes.set_ylim, axes.set_zlim),
        middle,
        size,
        names,
        strict=True,
    ):
        set_limits(centre - length / 2, centre + length / 2)
        axis.set_label_text(name, fontsize=9)
    axes.set_box_aspect(size, zoom=zoom)
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=8, pad=1)
