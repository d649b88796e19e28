"""What a policy sees: its small picture, and the depth that comes with it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.figure import Figure

from spatialvla_ft.depth.metres import reading_in_metres
from spatialvla_ft.pictures import rgb_bytes

NEAR_MEDIANS = 1.6
"""The colours of the depth end at this many median depths."""


def plot_view(
    image: UInt8[np.ndarray, "H W 3"], depth: Float32[np.ndarray, "H W"], patch_size: int
) -> Figure:
    """Picture and depth (metres, 0 = unknown) with the edges of the patches."""
    depth = reading_in_metres(depth)
    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    height, width = depth.shape
    extent = (0, width, height, 0)
    left.imshow(rgb_bytes(image), extent=extent, interpolation="nearest")
    left.set_title(f"colour, {width} × {height} pixels", fontsize=11)
    known = np.ma.masked_equal(depth, 0.0)
    # The floor behind the table must not flatten the table.
    farthest = min(float(known.max()), NEAR_MEDIANS * float(np.median(known.compressed())))
    shown = right.imshow(
        known, extent=extent, interpolation="nearest", cmap="cividis_r", vmax=farthest
    )
    right.set_facecolor("#BBBBBB")
    right.set_title("sensor depth along the optical axis", fontsize=11)
    beyond = "max" if farthest < float(known.max()) else "neither"
    figure.colorbar(shown, ax=right, label="metres", shrink=0.92, extend=beyond)
    for axes in (left, right):
        for edge in range(patch_size, max(width, height), patch_size):
            axes.axhline(edge, color="white", lw=0.9, alpha=0.8)
            axes.axvline(edge, color="white", lw=0.9, alpha=0.8)
        axes.set_xticks(range(0, width + 1, patch_size))
        axes.set_yticks(range(0, height + 1, patch_size))
        axes.set_xlabel("u (pixels)")
        axes.set_ylabel("v (pixels)")
    return figure
