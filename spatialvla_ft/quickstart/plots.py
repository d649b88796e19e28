"""Loss curves of several trainings.

What a policy sees: its small picture, and the depth that comes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from spatialvla_ft.depth.metres import reading_in_metres
from spatialvla_ft.pictures import rgb_bytes
from spatialvla_ft.quickstart.run_files import TRAININGS
from spatialvla_ft.viz.embed import BLUE, GREEN, GREY, ORANGE, plain

_COLOURS = {"base": GREEN, "adapt": BLUE, "scratch": ORANGE, "no_ego3d": GREY}
_PANELS = {
    "Pre-training on robot A": ("base",),
    "Training on robot B": ("adapt", "scratch", "no_ego3d"),
}
SPAN = 5
"""Logged points that the smoothed curve averages over, exponentially."""


def series(
    lines: Sequence[Mapping[str, Any]], key: str
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """(steps, values) of the lines that hold `key`."""
    chosen = [(line["step"], line[key]) for line in lines if key in line]
    table = np.array(chosen, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def smooth(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Exponential moving average over SPAN points, without a bias towards the first."""
    decay = 1 - 2 / (SPAN + 1)
    total = weight = 0.0
    result = np.empty_like(values)
    for i, value in enumerate(values):
        total, weight = decay * total + value, decay * weight + 1
        result[i] = total / weight
    return result


def plot_losses(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Figure]:
    """Training (faint: as logged, strong: smoothed) and validation loss; a figure per robot."""
    return {title: _plot(title, names, metrics) for title, names in _PANELS.items()}


def _plot(
    title: str, names: Sequence[str], metrics: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Figure:
    figure = Figure(figsize=(6.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for name in names:
        if metrics.get(name):
            _training(axes, name, metrics[name])
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("cross-entropy per action token (nats)")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6, 8)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    plain(axes)
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=1, fontsize=9, frameon=False)
    else:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center")
    return figure


def _training(axes: Axes, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    colour, label = _COLOURS[name], TRAININGS[name]
    steps, losses = series(lines, "loss")
    if len(steps):
        smoothed = smooth(losses)
        axes.plot(steps, losses, color=colour, lw=0.8, alpha=0.3)
        axes.plot(
            steps,
            smoothed,
            color=colour,
            lw=2,
            label=f"{label}: training, ends at {smoothed[-1]:.2f}",
        )
    steps, losses = series(lines, "validation/loss")
    if len(steps):
        axes.plot(
            steps, losses, color=colour, lw=1.4, ls="--", marker="o", ms=4.5, mfc="white",
            label=f"{label}: held-out episodes, ends at {losses[-1]:.2f}",
        )  # fmt: skip


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
