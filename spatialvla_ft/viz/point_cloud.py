"""The points that Ego3D sees: a frame back-projected, with the points of the patches on top.

Camera frame: OpenCV axes, metres, camera at the origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MultipleLocator

from spatialvla_ft.depth.metres import reading_in_metres
from spatialvla_ft.geometry.depth_maps import usable
from spatialvla_ft.pictures import rgb_bytes
from spatialvla_ft.viz.embed import INK, VERMILION

if TYPE_CHECKING:
    from spatialvla_ft.data.samples import SampleDataset

FRUSTUM_METRES = 0.2
REACH = 1.6
"""Points farther than this many median depths (the floor behind the table) are not drawn."""
_CLOUD = "#9A8F80"


@dataclass(frozen=True)
class CameraFrame:
    """A square picture with its sensor depth (metres, 0 = unknown), K, and a title."""

    title: str
    image: UInt8[np.ndarray, "H H 3"]
    depth: Float[np.ndarray, "H H"]
    intrinsics: Float64[np.ndarray, "3 3"]

    def __post_init__(self) -> None:
        """ValueError for a picture or depth that could be read in more than one way."""
        object.__setattr__(self, "image", rgb_bytes(self.image, self.title))
        object.__setattr__(self, "depth", reading_in_metres(self.depth, f"depth of {self.title}"))


def pixel_points(frame: CameraFrame) -> tuple[Float64[np.ndarray, "N 3"], Int64[np.ndarray, "N 2"]]:
    """(points in metres, their (row, column)) of the pixels whose depth is known."""
    rows, columns = np.nonzero(usable(frame.depth))
    depth = frame.depth[rows, columns].astype(np.float64)
    K = frame.intrinsics
    y = (rows + 0.5 - K[1, 2]) / K[1, 1]
    x = (columns + 0.5 - K[0, 2] - K[0, 1] * y) / K[0, 0]
    return np.stack([x * depth, y * depth, depth], axis=1), np.stack([rows, columns], axis=1)


def cell_points(
    frame: CameraFrame, image_size: int, patch_size: int, reso: int
) -> Float64[np.ndarray, "P R 3"]:
    """Points of every patch as the model computes them, metres; R = reso * reso per patch."""
    # Imported here: torch is wanted by this function alone.
    import torch

    from spatialvla_ft.models.ego3d import patch_points

    if frame.image.shape[:2] != (image_size, image_size):
        raise ValueError(
            f"picture of {frame.image.shape[:2]} pixels, but the model sees {image_size} a side"
        )
    points = patch_points(
        torch.from_numpy(np.ascontiguousarray(frame.depth, np.float32))[None],
        torch.from_numpy(np.asarray(frame.intrinsics, np.float32))[None],
        image_size,
        patch_size,
        reso,
    )
    return points[0].reshape(-1, reso * reso, 3).double().numpy()


def two_views(
    dataset: SampleDataset, *, slot: str = "primary", among: int = 24
) -> list[CameraFrame]:
    """First frames of the two episodes, of the first few, whose cameras look from most apart."""
    few = dataset.episodes[:among]
    samples = [dataset.subset(few[i : i + 1])[0] for i in range(len(few))]
    forward = np.array([sample.extrinsics[slot][:3, 2] for sample in samples])
    first, second = np.unravel_index(np.argmin(forward @ forward.T), (len(samples),) * 2)
    frames = []
    for name, index in zip("AB", sorted({int(first), int(second)}), strict=False):
        sample = samples[index]
        assert sample.depth is not None
        K = sample.intrinsics[slot]
        height = sample.images[slot].shape[0]
        fov = 2 * np.degrees(np.arctan(0.5 * height / K[1, 1]))
        title = f"Camera {name}: episode {sample.episode}, field of view {fov:.0f}°"
        frames.append(CameraFrame(title, sample.images[slot], sample.depth[slot], K))
    return frames


def plot_point_clouds(
    frames: list[CameraFrame], image_size: int, patch_size: int, reso: int
) -> Figure:
    """One row per camera: its picture with the cells, and the scene in its own 3-D frame."""
    figure = Figure(figsize=(11.5, 4.7 * len(frames)))
    for row, frame in enumerate(frames):
        cells = cell_points(frame, image_size, patch_size, reso)
        marked = _most_colourful(frame.image, patch_size)
        height = 1 / len(frames)
        bottom = 1 - (row + 1) * height
        flat = figure.add_axes((0.06, bottom + 0.14 * height, 0.31, 0.7 * height))
        _picture(flat, frame, patch_size, reso, marked)
        solid = figure.add_axes(
            (0.37, bottom + 0.01 * height, 0.6, 0.98 * height),
            projection="3d",
            computed_zorder=False,
        )
        _scene(solid, frame, cells, marked)
    return figure


def _most_colourful(image: UInt8[np.ndarray, "H H 3"], patch_size: int) -> int:
    """Number, row by row, of the patch with the most saturated colours: where the block is."""
    spread = np.ptp(image.astype(np.float64), axis=-1)
    side = len(image) // patch_size
    patches = spread.reshape(side, patch_size, side, patch_size).mean(axis=(1, 3))
    return int(patches.argmax())


def _picture(axes: Any, frame: CameraFrame, patch_size: int, reso: int, marked: int) -> None:
    side = len(frame.image)
    axes.imshow(frame.image, extent=(0, side, side, 0), interpolation="nearest")
    for edge in np.arange(0, side + 1, patch_size / reso):
        whole = edge % patch_size == 0
        style = {"color": "white", "lw": 1.4 if whole else 0.5, "alpha": 0.9 if whole else 0.6}
        axes.axhline(edge, **style)
        axes.axvline(edge, **style)
    row, column = divmod(marked, side // patch_size)
    axes.add_patch(
        Rectangle(
            (column * patch_size, row * patch_size), patch_size, patch_size,
            fill=False, ec=VERMILION, lw=3, zorder=5,
        )
    )  # fmt: skip
    axes.set_title(frame.title, fontsize=10.5)
    axes.set_xticks(range(0, side + 1, patch_size))
    axes.set_yticks(range(0, side + 1, patch_size))
    axes.set_xlabel("u (pixels)")
    axes.set_ylabel("v (pixels)")


def _scene(axes: Any, frame: CameraFrame, cells: Float64[np.ndarray, "P R 3"], marked: int) -> None:
    """Drawn with z forward to the back and y down, so that the picture stands upright."""
    points, pixels = pixel_points(frame)
    reach = REACH * float(np.median(points[:, 2]))
    near = points[:, 2] <= reach
    colours = frame.image[pixels[near, 0], pixels[near, 1]] / 255
    axes.scatter(
        *_turned(points[near]), c=colours, s=9, marker="s", lw=0, depthshade=False, zorder=1
    )
    others = np.delete(cells, marked, axis=0).reshape(-1, 3)
    close = others[others[:, 2] <= reach]
    style = {"marker": "o", "depthshade": False, "edgecolors": INK, "lw": 0.9}
    axes.scatter(*_turned(close), c="white", s=17, zorder=3, **style)
    axes.scatter(*_turned(cells[marked]), c=VERMILION, s=30, zorder=4, **style)
    _frustum(axes, frame)
    drawn = _turned(np.concatenate([points[near], close, cells[marked], np.zeros((1, 3))]))
    low, high = drawn.min(axis=1) - 0.03, drawn.max(axis=1) + 0.03
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_zlim(low[2], high[2])
    axes.set_box_aspect(high - low, zoom=1.18)
    axes.view_init(elev=16, azim=-38)
    labels = ("x, right (m)", "z, forward (m)", "y, down (m)")
    for axis, label in zip((axes.xaxis, axes.yaxis, axes.zaxis), labels, strict=True):
        axis.set_major_locator(MultipleLocator(0.2))
        axis.set_label_text(label, fontsize=9)
    axes.zaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{-round(value, 1) + 0.0:.1f}"))
    axes.tick_params(labelsize=8, pad=1)
    hidden = f"not drawn: {np.sum(~near)} pixels and {len(others) - len(close)} patch points "
    hidden += f"beyond {reach:.1f} m"
    count, per_patch = cells.shape[0] * cells.shape[1], cells.shape[1]
    handles = [
        _key(marker="s", color=_CLOUD, ms=5, label=f"{len(points):,} pixels with depth"),
        _key(mfc="white", ms=6, label=f"{count} patch points, {per_patch} per patch"),
        _key(mfc=VERMILION, ms=7, label="points of the marked patch"),
        Line2D([], [], color=INK, lw=1.5, label="camera and its field of view"),
    ]
    axes.text2D(0.98, 0.02, hidden, transform=axes.transAxes, ha="right", fontsize=8.5)
    axes.legend(handles=handles, fontsize=8.5, loc="upper left", frameon=False)


def _key(**style: Any) -> Line2D:
    return Line2D([], [], **({"ls": "", "marker": "o", "mec": style.get("color", INK)} | style))


def _turned(points: Float64[np.ndarray, "N 3"]) -> Float64[np.ndarray, "3 N"]:
    """Camera axes (right, down, forward) to the drawing's (right, back, up)."""
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]])


def _frustum(axes: Any, frame: CameraFrame) -> None:
    height, width = frame.depth.shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], np.float64)
    rays = corners @ np.linalg.inv(frame.intrinsics).T
    near = rays * FRUSTUM_METRES
    reach = float(np.median(frame.depth[frame.depth > 0]))
    for corner, ray in zip(near, rays, strict=True):
        axes.plot(*_turned(np.stack([np.zeros(3), corner])), color=INK, lw=1.5, zorder=5)
        axes.plot(*_turned(np.stack([corner, ray * reach])), color=INK, lw=0.5, ls=":", zorder=2)
    axes.plot(*_turned(np.vstack([near, near[:1]])), color=INK, lw=1.5, zorder=5)
    axes.scatter(0, 0, 0, color=INK, s=26, zorder=6, depthshade=False)
