"""How the cost of a frame, and memory, grow with the data, the datasets and the workers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ..viz.palette import BLUE, GREEN, GREY, ORANGE, plain
from .figures import Report


def draw(
    report: Report, curves: Mapping[str, Mapping[int, Mapping[str, float]]], out: Path
) -> None:
    """Write the plot.

    Args:
        report: with figures named `PATH, N workers, cpu` and `tf.data, cpu`.
        curves: {what grows: {how much: {"memory": MiB, "cpu": ms}}}.
        out: PNG.
    """
    canvas = Canvas(figsize=(11, 3.4), layout="constrained")
    axes = canvas.subplots(1, 1 + len(curves))
    _workers(report, axes[0])
    for place, (name, points) in zip(axes[1:], curves.items(), strict=True):
        _growth(place, name, points)
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(out, dpi=130)


def _workers(report: Report, axes: Axes) -> None:
    for path, colour in (("fast", BLUE), ("parity", GREEN)):
        found = {}
        for figure in report.figures:
            words = figure.name.split()
            if figure.name.startswith(f"{path}, ") and figure.name.endswith("workers, cpu"):
                found[int(words[1])] = figure
        low = [found[n].value - found[n].low for n in found]
        high = [found[n].high - found[n].value for n in found]
        values = [found[n].value for n in found]
        axes.errorbar(list(found), values, [low, high], color=colour, marker="o", label=path)
    theirs = report["tf.data, cpu"].value
    axes.axhline(theirs, color=ORANGE, label="tf.data, Lanczos")
    axes.set_xticks(sorted({int(n) for n in axes.get_xticks() if n >= 0 and n == int(n)}))
    axes.set(xlabel="workers", ylabel="processor ms per frame", ylim=(0, None))
    axes.legend(frameon=False)
    plain(axes)


def _growth(axes: Axes, name: str, points: Mapping[int, Mapping[str, float]]) -> None:
    axes.plot(list(points), [p["cpu"] for p in points.values()], color=BLUE, marker="o")
    axes.set_xscale("log")
    axes.set_xticks(list(points), [str(n) for n in points])
    axes.minorticks_off()
    axes.set(xlabel=name, ylim=(0, None))
    axes.set_ylabel("processor ms per frame, fast", color=BLUE)
    plain(axes)
    other = axes.twinx()
    other.plot(list(points), [p["memory"] for p in points.values()], color=GREY, marker="s")
    other.set_ylim(0, 330)
    other.axhline(300, color=GREY, ls=":")
    other.set_ylabel("MiB over bare torch (dotted: goal)", color=GREY)
