"""Tables and a picture of what `measure_adaptation.py` found.

python tools/show_adaptation.py docs/results/adaptation.jsonl --plot docs/images/adaptation.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spatialvla_ft.evaluation.outcome import wilson_interval
from spatialvla_ft.viz.embed import BLUE, GREY, INK, ORANGE, plain

Line = dict[str, Any]
COLOURS = {"adapted": BLUE, "not interpolated": ORANGE, "old grid": GREY}
GRIDS = {"gaussian": "Gaussian grid of robot B", "uniform": "uniform grid"}


def millimetres(point: Line) -> float:
    """Mean error of x, y and z."""
    return float(np.mean([point["l1"][name] for name in "xyz"])) * 1e3


def milliradians(point: Line) -> float:
    """Mean error of roll, pitch and yaw."""
    return float(np.mean([point["l1"][name] for name in ("roll", "pitch", "yaw")])) * 1e3


def density(point: Line) -> float:
    """Minus the log of the density of the recorded action, nats."""
    return float(point["density"])


def loss(point: Line) -> float:
    """Nats per label token."""
    return float(point["loss"])


PLOTTED = {"minus log density (nats per action)": density, "translation error (mm)": millimetres}
AT_THE_END = {
    "loss": (loss, 2),
    "-log density": (density, 2),
    "translation, mm": (millimetres, 2),
    "rotation, mrad": (milliradians, 1),
}


def groups(lines: Iterable[Line], *keys: str) -> dict[tuple[Any, ...], list[Line]]:
    """Runs that differ in nothing but the seed, in the order of the file."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[key] for key in keys), []).append(line)
    return found


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over the seeds."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 2 or np.ptp(values) == 0:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def solved(points: list[Line]) -> str:
    """Successes of every seed, and the share and Wilson interval of all episodes together."""
    found = [point["closed_loop"] for point in points if "closed_loop" in point]
    if not found:
        return ""
    counts = [one["successes"] for one in found]
    episodes = sum(one["episodes"] for one in found)
    low, high = wilson_interval(sum(counts), episodes)
    share = sum(counts) / episodes
    return f"{' + '.join(map(str, counts))}: {share:.0%} ({low:.0%} to {high:.0%})"


def row(*cells: object) -> None:
    """One line of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |")


def head(*cells: str) -> None:
    """The first two lines of a Markdown table."""
    print()
    row(*cells)
    row(*["---"] * len(cells))


def by_step(lines: list[Line], measure: Callable[[Line], float], *keys: str) -> None:
    """A row per arm, a column per matched step."""
    steps = [point["step"] for point in lines[0]["curve"]]
    head(*keys, *map(str, steps))
    for group, runs in groups(lines, *keys).items():
        points = zip(*(run["curve"] for run in runs), strict=True)
        row(*group, *(spread([measure(p) for p in column], 2) for column in points))


def at_the_end(lines: list[Line], *keys: str) -> None:
    """A row per arm: errors and successes after the last step, successes before the first."""
    head(*keys, *AT_THE_END, "solved", "solved at step 0")
    for group, runs in groups(lines, *keys).items():
        last = [run["curve"][-1] for run in runs]
        first = [run["curve"][0] for run in runs if run["curve"][0]["step"] == 0]
        cells = [spread([f(point) for point in last], n) for f, n in AT_THE_END.values()]
        row(*group, *cells, solved(last), solved(first))


def plot(lines: list[Line], file: Path) -> None:
    """Density and error of translation against steps; a column per grid."""
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    panels = figure.subplots(2, len(GRIDS), sharey="row", sharex=True)
    for rank, (name, measure) in enumerate(PLOTTED.items()):
        for column, (kind, title) in enumerate(GRIDS.items()):
            axes = panels[rank][column]
            for (arm, grid, trained), runs in groups(lines, "arm", "grid", "table").items():
                if grid in (kind, "kept"):
                    _curve(axes, runs, measure, COLOURS[arm], trained == "trained")
            plain(axes)
            axes.tick_params(labelleft=True, labelbottom=True)
            if rank == 0:
                axes.set_title(title, fontsize=11)
            axes.set_xlabel("optimiser steps on 200 demonstrations of robot B")
            axes.set_ylabel(name)
    handles = [Line2D([], [], color=c, lw=2.2, label=arm) for arm, c in COLOURS.items()]
    if len({line["table"] for line in lines}) > 1:
        handles += [
            Line2D([], [], color=INK, lw=1.6, ls=style, label=f"table {state}")
            for state, style in (("trained", "-"), ("frozen", "--"))
        ]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=10, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def _curve(
    axes: Axes, runs: list[Line], measure: Callable[[Line], float], colour: str, whole: bool
) -> None:
    steps = [point["step"] for point in runs[0]["curve"]]
    values = np.array([[measure(point) for point in run["curve"]] for run in runs])
    x = np.arange(len(steps))
    axes.plot(x, values.mean(0), color=colour, lw=2.2, ls="-" if whole else "--", marker="o", ms=4)
    if whole:
        axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.18, lw=0)
    axes.set_xticks(x, steps)


def main() -> None:
    """Print the tables, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.results.read_text().splitlines()]
    of = {name: found for (name,), found in groups(lines, "experiment").items()}
    if "grids" in of:
        by_step(of["grids"], density, "table", "grid", "arm")
        by_step(of["grids"], millimetres, "table", "grid", "arm")
        at_the_end(of["grids"], "table", "grid", "arm")
    if "demos" in of:
        at_the_end(of["demos"], "demonstrations", "arm", "trained_parameters")
    if "rates" in of:
        at_the_end(of["rates"], "arm", "rate")
    if given.plot is not None:
        plot(of["grids"], given.plot)


if __name__ == "__main__":
    main()
