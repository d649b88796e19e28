"""Loss curves of several trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from spatialvla_ft.viz.palette import BLUE, GREEN, GREY, ORANGE, plain
from spatialvla_ft.viz.run_files import TRAININGS

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
