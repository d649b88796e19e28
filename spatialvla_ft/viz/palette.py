"""Colours that stay apart for colour-blind readers (Okabe and Ito), and common axis dress."""

from __future__ import annotations

from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY, INK = "#8A8F98", "#1D2430"


def plain(axes: Axes) -> None:
    """A light grid and no box."""
    axes.grid(True, color="#E3E6EA", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
