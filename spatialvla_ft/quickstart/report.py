"""The report of a quickstart run: one page of HTML without any other file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from spatialvla_ft.quickstart import details, pictures, results, scenes
from spatialvla_ft.quickstart.run_files import RunFiles, read_run
from spatialvla_ft.viz.html import page, section

TITLE = "Adapting a small spatial VLA to a new robot"
_LIMITS = (
    "A small model from random weights, trained for minutes. The run shows that the tools work "
    "together, from demonstrations to a reloaded export; it says nothing about how well the "
    "released SpatialVLA checkpoints do on your robot.",
    "One task, “touch the … block”, with six colours for words. One attention head was told in "
    "training where the named block lies; without that, a model of this size does not find out in "
    "minutes which word belongs to which block. Another sentence than this one is not tried.",
    "Grasping, placing and spatial relations are not attempted. tabletop_full is the recipe for "
    "all tasks; its result is open.",
    "Simulation only: exact depth, exact calibration, no latency, and a robot B whose blocks and "
    "task are robot A's. No grasping, no contact-rich work.",
    "The intervals hold the chance of the episodes drawn, not of training again. How much success "
    "varies from one training seed to the next stands in docs/benchmarks.md.",
    "The baselines are the simple ones. From scratch is the same network on B's demonstrations "
    "alone, as its recipe says; a longer or better tuned training could do more.",
)


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
    tell = on_section or (lambda name: None)
    tell("films")
    shown = scenes.replayed(run)
    sections: dict[str, Callable[[], str]] = {
        "opening": partial(scenes.opening, shown),
        "success": partial(results.success, run, shown),
        "words": partial(results.words, run, shown),
        "point clouds": partial(pictures.point_clouds, run, shown),
        "grids": partial(pictures.grids, run),
        "training": partial(details.training, run),
        "open loop": partial(details.open_loop, run),
        "export": partial(details.export, run),
        "limits": _limits,
        "environment": partial(details.environment, run),
        "stages": partial(details.stages, run),
    }
    body = []
    for name, make in sections.items():
        tell(name)
        body.append(make())
    out.mkdir(parents=True, exist_ok=True)
    path = out / "index.html"
    head = results.lead(run) + results.missing(run)
    path.write_text(page(TITLE, head, "".join(body)), encoding="utf-8")
    return path


def _limits() -> str:
    return section(
        "What this does not show",
        "<ul>" + "".join(f"<li>{text}</li>" for text in _LIMITS) + "</ul>",
    )
