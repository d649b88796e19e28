"""Success rates side by side, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.viz.gate import THRESHOLD
from spatialvla_ft.viz.palette import BLUE, GREEN, GREY, INK, VERMILION, plain
from spatialvla_ft.viz.run_files import BASELINES, POLICIES


def plot_success(outcomes: Mapping[str, Sequence[ClosedLoop]]) -> Figure:
    """One bar per policy: share of episodes solved, Wilson 95 % interval, counts."""
    rows = [(name, o) for name in POLICIES for o in outcomes.get(name, ())]
    tasks = {o.task for _, o in rows}
    figure = Figure(figsize=(10, 1.5 + 0.52 * max(1, len(rows))), layout="constrained")
    axes = figure.add_subplot()
    for y, (name, outcome) in enumerate(rows):
        low, high = outcome.interval
        colour = GREEN if name == "base_on_a" else GREY if name in BASELINES else BLUE
        axes.barh(y, outcome.rate, color=colour, height=0.62)
        axes.errorbar(
            outcome.rate, y, xerr=[[outcome.rate - low], [high - outcome.rate]],
            fmt="none", ecolor=INK, elinewidth=1.6, capsize=4,
        )  # fmt: skip
        text = f"{outcome.successes}/{outcome.episodes}"
        axes.text(high + 0.015, y, text, va="center", fontsize=10, color=INK)
    axes.axvline(THRESHOLD, color=VERMILION, lw=1.4, ls="--")
    labels = [POLICIES[name] + (f"\n{o.task}" if len(tasks) > 1 else "") for name, o in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("episodes solved in simulation")
    plain(axes)
    axes.grid(False, axis="y")
    handles = [
        Patch(color=BLUE, label="adapted, on robot B"),
        Patch(color=GREY, label="baselines, on robot B"),
        Patch(color=GREEN, label="base, on robot A"),
        Line2D([], [], color=INK, lw=1.6, label="Wilson 95 % interval"),
        Line2D([], [], color=VERMILION, lw=1.4, ls="--", label=f"gate, {THRESHOLD:.0%}"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    return figure
