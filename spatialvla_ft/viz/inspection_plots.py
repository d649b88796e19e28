"""Plots of an inspection: lengths, actions against q01 and q99, the gripper over time."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spatialvla_ft.actions.normalise import normalise
from spatialvla_ft.actions.spaces import RawActions
from spatialvla_ft.data.sampler import evenly_spaced
from spatialvla_ft.data.stats.statistics import compute_statistics, normalised_dimensions
from spatialvla_ft.inspection import Inspection
from spatialvla_ft.viz.embed import BLUE, GREY, INK, ORANGE, VERMILION, plain

BARS = 60
SHOWN = 4
"""Episodes of the gripper's time lines."""


def plot_lengths(seen: Inspection) -> Figure:
    """How many episodes have how many steps."""
    figure = Figure(figsize=(10, 2.4), layout="constrained")
    axes = figure.subplots()
    lengths = seen.all_lengths
    bins = np.arange(lengths.min(), lengths.max() + 2) - 0.5
    if len(bins) > BARS:
        bins = np.linspace(bins[0], bins[-1], BARS + 1)
    axes.hist(lengths, bins=bins.tolist(), color=BLUE)
    axes.axvline(float(np.median(lengths)), color=VERMILION, lw=1.6, label="median")
    axes.set_xlabel("steps of an episode, before the card's drops")
    axes.set_ylabel("episodes")
    axes.legend(frameon=False, fontsize=9)
    plain(axes)
    return figure


def plot_actions(seen: Inspection) -> Figure | None:
    """Histograms of every dimension: above in the robot's units, below as training sees them.

    None if no step is without NaN and infinity.
    """
    values = seen.action.values
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return None
    statistics = compute_statistics(
        RawActions(values.astype(np.float32)),
        normalised_dimensions(seen.space),
        units=seen.space.units,
    )
    scaled = normalise(RawActions(values.astype(np.float32)), statistics)
    dim = values.shape[1]
    columns = min(4, dim)
    rows = -(-dim // columns)
    figure = Figure(figsize=(12.5, 4.3 * rows), layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns)
    for i, (name, unit) in enumerate(zip(seen.space.names, seen.space.units, strict=True)):
        row, column = divmod(i, columns)
        top = figure.add_subplot(grid[2 * row, column])
        _histogram(top, values[:, i])
        names = ("becomes -1", "becomes 1") if statistics.widened[i] else ("q01", "q99")
        ends = zip((statistics.q01[i], statistics.q99[i]), names, ("right", "left"), strict=True)
        for value, label, side in ends:
            top.axvline(value, color=VERMILION, lw=1.3)
            top.annotate(
                label, (value, 1), xycoords=("data", "axes fraction"), fontsize=8, color=VERMILION,
                ha=side, va="top", rotation=90,
            )  # fmt: skip
        top.set_title(f"{name}{f', {unit}' if len(unit) < 5 else ''}", fontsize=11, loc="left")
        below = figure.add_subplot(grid[2 * row + 1, column])
        _histogram(below, scaled[:, i], colour=ORANGE, limits=(-1.05, 1.05))
        below.set_xlabel(f"{name}, normalised" if statistics.mask[i] else f"{name}, as it is")
    return figure


def _histogram(
    axes: Axes, values: np.ndarray, *, colour: str = BLUE, limits: tuple[float, float] | None = None
) -> None:
    low, high = limits or (float(values.min()), float(values.max()))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    counts, _, _ = axes.hist(values, bins=np.linspace(low, high, BARS + 1).tolist(), color=colour)
    shares = np.sort(np.asarray(counts))[::-1]
    # One spike (a robot that stands still) must not flatten all the rest.
    if shares[2] and shares[0] > 6 * shares[2]:
        axes.set_ylim(0, 3 * shares[2])
        axes.set_title(f"tallest bar {shares[0]:.0f}", fontsize=8, loc="right", color=INK)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    plain(axes)
    axes.spines["left"].set_visible(False)


def plot_gripper(seen: Inspection) -> Figure | None:
    """Raw column and standard action of the first gripper over time; None without one."""
    at = np.flatnonzero(~seen.is_arm)
    if not len(at):
        return None
    term = seen.card.action.gripper_terms[0]
    source = seen.raw_action.get(term.path or "")
    standard = seen.action.columns([int(at[0])]).episodes()
    raw = None if source is None else source.columns(term.columns).episodes()
    low, high = (0.0, 1.0)
    if source is not None:
        low, high = np.nanquantile(source.values[:, term.columns], [0, 1])
    chosen = evenly_spaced(len(standard), SHOWN)
    figure = Figure(figsize=(12.5, 1.35 * len(chosen) + 0.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(chosen), 1))
    first = seen.card.drop.first
    for axes, i in zip(panels, chosen, strict=True):
        line = standard[i][:, 0]
        steps = np.arange(len(line)) + first
        axes.step(steps, line, where="post", color=BLUE, lw=2.2, label="standard, 1 = open")
        axes.set_ylim(-0.12, 1.12)
        axes.set_yticks([0, 1], ["closed", "open"])
        axes.set_title(f"episode {seen.episodes[i]}", fontsize=10, loc="left")
        plain(axes)
        if raw is not None and len(raw) == len(standard):
            other = axes.twinx()
            drawn = raw[i][:, -1]
            other.step(range(len(drawn)), drawn, where="post", color=GREY, lw=1.2, ls="--",
                       label=f"raw {term}")  # fmt: skip
            margin = 0.16 * (high - low) or 0.5
            other.set_ylim(low - margin, high + margin)
            other.tick_params(labelsize=8, colors=GREY)
            other.spines["top"].set_visible(False)
            handles = [*axes.get_lines(), *other.get_lines()]
        else:
            handles = list(axes.get_lines())
        if i == chosen[0]:
            axes.legend(
                handles, [str(h.get_label()) for h in handles], frameon=False, fontsize=8, ncols=2,
                loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1,
            )  # fmt: skip
    panels[-1].set_xlabel("step")
    return figure
