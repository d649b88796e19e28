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

from spatialvla_ft.evaluation.intervals import wilson_interval
from spatialvla_ft.viz.palette import BLUE, GREY, INK, ORANGE, plain

Line = dict[str, Any]
COLOURS = {"adapted": BLUE, "not interpolated": ORANGE, "old grid": GREY}
GRIDS = {"gaussian": "Gaussian grid of robot B", "uniform": "uniform grid"}


def millimetres(point: Line) -> float:
    """Mean error of x, y and z."""
    return float(np.mean([point["l1"][name] for name in "xyz"])) * 1e3


def milliradians(point: Line) -> float:
    """Mean error of roll, pitch and yaw."""
    return float(np.mean([point["l1"][name] for name in ("roll", "pitch", "yaw")])) * 1e3


MEASURES: dict[str, Callable[[Line], float]] = {
    "loss (nats per token)": lambda point: point["loss"],
    "density (nats per action)": lambda point: point["density"],
    "translation error (mm)": millimetres,
    "rotation error (mrad)": milliradians,
}


def groups(lines: Iterable[Line], *keys: str) -> dict[tuple[Any, ...], list[Line]]:
    """Runs that differ in nothing but the seed, in the order of the file."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[key] for key in keys), []).append(line)
    return found


def spread(values: list[float], digits: int) -> str:
    """Mean, and the least and greatest of the seeds."""
    low, mean, high = (f"{f(values):.{digits}f}" for f in (min, np.mean, max))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def solved(points: list[Line]) -> str:
    """Successes of every seed, and the Wilson interval of all episodes together."""
    counts = [point["closed_loop"]["successes"] for point in points]
    episodes = sum(point["closed_loop"]["episodes"] for point in points)
    low, high = wilson_interval(sum(counts), episodes)
    return f"{', '.join(map(str, counts))} ({low:.0%} to {high:.0%})"


def row(*cells: object) -> None:
    """One line of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |")


def table(lines: list[Line], keys: tuple[str, ...], steps: list[int]) -> None:
    """A row per arm and step, with mean and range over the seeds."""
    heads = [*keys, "steps", "seeds", *MEASURES, "solved of 100 each"]
    row(*heads)
    row(*["---"] * len(heads))
    for group, runs in groups(lines, *keys).items():
        for step in steps:
            points = [p for run in runs for p in run["curve"] if p["step"] == step]
            acted = [p for p in points if "closed_loop" in p]
            cells = [
                spread([measure(p) for p in points], 2 if measure is not milliradians else 1)
                for measure in MEASURES.values()
            ]
            row(*group, step, len(points), *cells, solved(acted) if acted else "")
    print()


def plot(lines: list[Line], file: Path) -> None:
    """Density and error of translation against steps; a column per grid."""
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    panels = figure.subplots(2, len(GRIDS), sharey="row", sharex=True)
    measures = ("density (nats per action)", "translation error (mm)")
    for rank, name in enumerate(measures):
        for column, (kind, title) in enumerate(GRIDS.items()):
            axes = panels[rank][column]
            for (arm, grid, trained), runs in groups(lines, "arm", "grid", "table").items():
                if grid in (kind, "kept"):
                    _curve(axes, runs, MEASURES[name], COLOURS[arm], trained == "trained")
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
    grids = [line for line in lines if line["experiment"] == "grids"]
    table(grids, ("table", "grid", "arm"), [0, 25, 50, 100, 200, 400])
    demos = [line for line in lines if line["experiment"] == "demos"]
    table(demos, ("demonstrations", "arm", "trained_parameters"), [100, 400])
    rates = [line for line in lines if line["experiment"] == "rates"]
    table(rates, ("arm", "rate"), [200])
    if given.plot is not None:
        plot(grids, given.plot)


if __name__ == "__main__":
    main()
