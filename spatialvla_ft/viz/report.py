"""The report of a quickstart run: one page of HTML without any other file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spatialvla_ft.viz import pictures, results
from spatialvla_ft.viz.html import page, section
from spatialvla_ft.viz.run_files import RunFiles, read_run

TITLE = "Adapting a small spatial VLA to a new robot"
_LIMITS = (
    "A small model from random weights, trained for minutes. The run shows that the tools work "
    "together, from demonstrations to a reloaded export; it says nothing about how well the "
    "released SpatialVLA checkpoints do on your robot.",
    "One task, “touch the block”, with a single block on the table. The words carry no choice "
    "here, so language is not tested.",
    "Choosing the named one of several blocks, grasping and placing, and spatial relations are "
    "not attempted: a model of this size does not learn them in minutes. "
    "recipes/tabletop_full.yaml is the recipe for all tasks; its result is open.",
    "Simulation only: exact depth, exact calibration, no latency, and a robot B whose table, "
    "blocks and task resemble robot A's. No grasping, no contact-rich work.",
    "One training seed. The intervals hold the chance of the episodes drawn, not of training "
    "again; another seed may land outside them.",
    "The baselines are the simple ones. From scratch is the same network on B's demonstrations "
    "alone, as the recipe above says; a longer or better tuned training could do more.",
)
Section = Callable[[RunFiles], str]
SECTIONS: dict[str, Section] = {
    "stages": results.stages,
    "success": results.success,
    "episodes": pictures.episodes,
    "point clouds": pictures.point_clouds,
    "grids": pictures.grids,
    "training": results.training,
    "open loop": results.open_loop,
    "export": results.export,
}


def write_report(runs: Path, out: Path, *, on_section: Callable[[str], None] | None = None) -> Path:
    """Write `out/index.html` about the run in `runs`; returns its path.

    Files that the run lacks are named on the page.

    Args:
        runs: output folder of the quickstart.
        out: folder for the page; made if there is none.
        on_section: told the name of each section before it is made.

    Raises:
        ValueError: `runs` is no run, or one of its files is damaged or contradicts itself.
    """
    return write_page(read_run(runs), out, on_section=on_section)


def write_page(
    run: RunFiles, out: Path, *, on_section: Callable[[str], None] | None = None
) -> Path:
    """`write_report` for a run that is already read."""
    body = []
    for name, make in SECTIONS.items():
        if on_section is not None:
            on_section(name)
        body.append(make(run))
    limits = "<ul>" + "".join(f"<li>{text}</li>" for text in _LIMITS) + "</ul>"
    body += [section("What this does not show", limits), results.environment(run)]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "index.html"
    path.write_text(page(TITLE, results.summary(run), "".join(body)), encoding="utf-8")
    return path
