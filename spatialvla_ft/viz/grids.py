"""A picture of an action grid: the distribution of each axis, its bins, and what decoding loses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from spatialvla_ft.actions import ActionGrid
from spatialvla_ft.actions.axes import F64, TRANSLATION_AXES
from spatialvla_ft.actions.grid_checks import Decoding
from spatialvla_ft.actions.layout import axis_ranges, fitted_values
from spatialvla_ft.actions.reconstruction import Reconstruction, reconstruct

_MEANING = {
    "theta": "θ, angle of the motion from +z (rad)",
    "phi": "φ, heading of the motion in the xy plane (rad)",
    "r": "r, length of the motion (normalised)",
}
_TICKS = {
    "theta": ([0, math.pi / 2, math.pi], ["0\nup, +z", "π/2\nlevel", "π\ndown, -z"]),
    "phi": (
        [-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi],
        ["-π\n-x", "-π/2\n-y", "0\n+x", "π/2\n+y", "π\n-x"],
    ),
}
_DATA, _FIT, _EDGE, _MEAN, _MIDPOINT = "#9ecae1", "#d94801", "#555555", "#2171b5", "#bdbdbd"


def plot_grid(grid: ActionGrid, actions: Any = None, *, title: str = "Action grid") -> Figure:
    """Distribution, fit, bin edges and occupancy of each axis; with actions, the reconstruction.

    Args:
        grid: the grid.
        actions: (n, 7) normalised actions, or None to show the grid alone.
        title: first line of the title.
    """
    result = None if actions is None else reconstruct(grid, actions)
    rows = max(2, -(-len(grid.edges) // 3))
    figure = Figure(
        figsize=(16, 4.25 * rows + (4.5 if result else 0)),
        layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.08),
    )
    figure.suptitle(title + "\n" + _subtitle(grid, result), fontsize=12)
    values = None if result is None else fitted_values(result.actions, grid.slots)
    heights = [5, 1] * rows + ([6.5] if result else [])
    cells = figure.add_gridspec(len(heights), 4, height_ratios=heights)
    for index, axis in enumerate(grid.edges):
        row, column = divmod(index, 3)
        top = figure.add_subplot(cells[2 * row, column])
        strip = figure.add_subplot(cells[2 * row + 1, column], sharex=top)
        _axis_panel(top, strip, grid, axis, None if values is None else values[axis])
    _gripper_panel(figure.add_subplot(cells[0:2, 3]), grid, result)
    _legend(figure.add_subplot(cells[2:4, 3]), grid, with_data=result is not None)
    if result is not None:
        for index in range(min(3, grid.dim)):
            _true_against_decoded(figure.add_subplot(cells[4, index]), result, index)
        _errors(figure.add_subplot(cells[4, 3]), grid, result)
    return figure


def save_grid_plot(
    path: Path, grid: ActionGrid, actions: Any = None, *, title: str = "Action grid"
) -> None:
    """`plot_grid` as a file; the suffix says the format (png, pdf, svg)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_grid(grid, actions, title=title).savefig(path, dpi=110)


def _subtitle(grid: ActionGrid, result: Reconstruction | None) -> str:
    counts = " · ".join(f"{axis} {len(edges) - 1}" for axis, edges in grid.edges.items())
    modes = {"mean": "the mean of its bin", "midpoint": "the midpoint of its bin"}
    lines = [f"{grid.kind} bins: {counts}; {grid.total} tokens; a token decodes to "]
    lines[0] += modes[grid.decoding] + (", no motion to exactly that" if grid.zero_bin else "")
    if result is not None:
        used = ", ".join(
            f"{len(np.unique(result.ids[:, i]))} of {count} {slot.name}"
            for i, (slot, count) in enumerate(zip(grid.slots, grid.counts, strict=True))
            if slot.shape != "switch"
        )
        lines.append(f"{len(result.actions):,} actions use {used} tokens")
    return "\n".join(lines)


def _axis_panel(top: Axes, strip: Axes, grid: ActionGrid, axis: str, values: F64 | None) -> None:
    """Histogram, fitted curve and edges above; share of the actions per bin below."""
    edges, (low, high) = grid.edges[axis], axis_ranges(grid.slots)[axis]
    curve_x, curve_y = _curve(grid, axis)
    ceiling = 1.15 * float(curve_y.max())
    if values is not None and len(values):
        heights, _, _ = top.hist(
            values, bins=np.linspace(low, high, 81).tolist(), density=True, color=_DATA
        )
        tallest = float(np.max(heights))
        # One spike (a robot that stands still) must not flatten all the rest.
        ceiling = max(ceiling, min(1.15 * tallest, 1.4 * float(np.quantile(heights, 0.97))))
        if tallest > ceiling:
            note = f"tallest bar reaches {tallest:.2g}"
            top.text(0.98, 0.96, note, transform=top.transAxes, ha="right", va="top", fontsize=8)
    top.plot(curve_x, curve_y, color=_FIT, lw=2)
    top.vlines(edges, 0, ceiling, color=_EDGE, lw=0.6, ls="--", alpha=0.7)
    top.set_ylim(0, ceiling)
    top.set_xlim(low, high)
    top.set_ylabel("density")
    top.set_title(f"{axis}: {len(edges) - 1} bins", fontsize=11)
    top.tick_params(labelbottom=False)
    _strip(strip, edges, values)
    spherical, arm = _spherical(grid, axis)
    strip.set_xlabel(arm + _MEANING[spherical] if spherical else f"{axis} (normalised)")
    if spherical in _TICKS:
        strip.set_xticks(*_TICKS[spherical])


def _spherical(grid: ActionGrid, axis: str) -> tuple[str, str]:
    """("theta", "phi" or "r", and the arm) of an axis of a translation; empty for another."""
    for slot in grid.slots:
        if slot.shape == "sphere" and axis in slot.axes:
            return TRANSLATION_AXES[slot.axes.index(axis)], f"{slot.arm}: " if slot.arm else ""
    return "", ""


def _strip(strip: Axes, edges: F64, values: F64 | None) -> None:
    n = len(edges) - 1
    strip.yaxis.set_major_locator(NullLocator())
    strip.set_ylabel("use", rotation=0, ha="right", va="center", fontsize=9)
    if values is None or not len(values):
        share = np.full(n, 1 / n)
    else:
        share = np.bincount(np.digitize(values, edges[1:-1]), minlength=n) / len(values)
    strip.pcolormesh(
        edges, [0, 1], share[None], cmap="Blues", vmin=0, vmax=max(2.5 / n, share.max()),
        edgecolors=_EDGE, linewidth=0.4,
    )  # fmt: skip
    empty = np.flatnonzero(share == 0)
    middle = 0.5 * (edges[:-1] + edges[1:])
    strip.plot(middle[empty], np.full(len(empty), 0.5), "x", color="#cb181d", ms=4)


def _curve(grid: ActionGrid, axis: str) -> tuple[F64, F64]:
    """Density that the bins stand for: the truncated Gaussian, or equal mass in every bin."""
    edges = grid.edges[axis]
    fit = None if grid.gaussians is None else grid.gaussians.get(axis)
    if grid.kind == "gaussian" and fit is not None:
        sigma = max(fit["sigma"], grid.min_sigma)
        x = np.linspace(edges[0], edges[-1], 400)
        density = np.exp(-0.5 * ((x - fit["mu"]) / sigma) ** 2)
        return x, density / np.trapezoid(density, x)
    n = len(edges) - 1
    density = np.repeat(1 / (n * np.diff(edges)), 2)
    if grid.kind == "uniform":
        density[:] = 1 / (edges[-1] - edges[0])
    # A sliver around a repeated value would dwarf the rest.
    density = np.minimum(density, 6 / (edges[-1] - edges[0]))
    return np.repeat(edges, 2)[1:-1], density


def _gripper_panel(top: Axes, grid: ActionGrid, result: Reconstruction | None) -> None:
    """Share of the actions that close and that open each gripper."""
    switches = [slot for slot in grid.slots if slot.shape == "switch"]
    top.set_title(f"{', '.join(slot.name for slot in switches) or 'no gripper'}", fontsize=11)
    top.xaxis.set_major_locator(FixedLocator([0, 1]))
    top.set_xticklabels(["closed\n(below 0.5)", "open\n(from 0.5)"])
    top.set_xlim(-0.6, 1.6)
    top.yaxis.set_major_formatter(PercentFormatter(1.0))
    top.set_ylabel("share of the actions")
    if result is None:
        top.set_ylim(0, 1)
        top.text(0.5, 0.5, "no actions given", ha="center", color=_EDGE)
        return
    width = 0.6 / max(1, len(switches))
    for index, slot in enumerate(switches):
        is_open = float((result.actions[:, slot.start] >= 0.5).mean())
        at = np.array([0, 1]) + (index - (len(switches) - 1) / 2) * width
        bars = top.bar(at, [1 - is_open, is_open], color=_DATA, width=0.9 * width, label=slot.name)
        top.bar_label(bars, fmt=lambda share: f"{share:.0%}")
    top.set_ylim(0, 1.1)


def _legend(axes: Axes, grid: ActionGrid, *, with_data: bool) -> None:
    axes.axis("off")
    handles: list[Any] = []
    if with_data:
        handles.append(Patch(color=_DATA, label="the given actions"))
    curve = {
        "gaussian": "fitted Gaussian, cut to the range"
        if grid.gaussians
        else "density of bins of equal probability",
        "uniform": "uniform density",
    }.get(grid.kind, "density of bins of equal probability")
    handles += [
        Line2D([], [], color=_FIT, lw=2, label=curve),
        Line2D([], [], color=_EDGE, lw=0.8, ls="--", label="bin edges"),
        Patch(
            facecolor="#4292c6",
            label="use: share of the actions in a bin;\ndarker = more, even = tokens well spent"
            if with_data
            else "use: even, as no actions are given",
        ),
    ]
    if with_data:
        handles += [
            Line2D([], [], color="#cb181d", marker="x", ls="", label="bin never used"),
        ]
    axes.legend(handles=handles, loc="center", fontsize=10, frameon=False, labelspacing=1.2)


def _true_against_decoded(axes: Axes, result: Reconstruction, dim: int) -> None:
    name = result.names[dim]
    shown = np.random.default_rng(0).permutation(len(result.actions))[:4000]
    axes.plot([-1, 1], [-1, 1], color=_FIT, lw=1.2, label="no loss")
    axes.plot(
        result.actions[shown, dim], result.decoded[shown, dim], ".",
        ms=2.5, alpha=0.4, color=_MEAN, label="one action",
    )  # fmt: skip
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel(f"true {name} (normalised)")
    axes.set_ylabel(f"decoded {name} (normalised)")
    axes.set_title(f"{name} to tokens and back: RMSE {result.rmse[dim]:.3f}", fontsize=11)
    axes.legend(loc="upper left", fontsize=8, markerscale=3)


def _errors(axes: Axes, grid: ActionGrid, result: Reconstruction) -> None:
    """Root mean square error of every dimension, for both ways to decode."""
    shown = [i for slot in grid.slots if slot.axes for i in range(slot.start, slot.stop)]
    at = np.arange(len(shown))
    modes: tuple[tuple[Decoding, float, str], ...] = (
        ("midpoint", -0.2, _MIDPOINT),
        ("mean", 0.2, _MEAN),
    )
    for mode, offset, colour in modes:
        rmse = reconstruct(grid, result.actions, mode=mode).rmse
        label = f"bin {mode}s" + (" (in use)" if mode == grid.decoding else "")
        drawn = axes.bar(at + offset, rmse[shown], width=0.4, color=colour, label=label)
        axes.bar_label(drawn, fmt="%.3f", fontsize=7, padding=2, rotation=90)
    names = [result.names[i] for i in shown]
    axes.set_xticks(at, names, rotation=90 if len(names) > 6 else 0)
    axes.set_ylabel("RMSE (normalised)")
    axes.set_title("Error by what a token decodes to", fontsize=11)
    axes.margins(y=0.3)
    axes.legend(fontsize=8, loc="upper left", ncols=2)
