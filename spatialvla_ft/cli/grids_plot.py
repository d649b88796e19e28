"""`spatialvla-ft grids plot`: look at an action grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from spatialvla_ft.cli.console import fail_with


def plot(
    grid_file: Annotated[
        Path, typer.Argument(metavar="GRID", help="grid.json, or a checkpoint directory.")
    ],
    out: Annotated[Path, typer.Option(help="Picture to write (png, pdf or svg).")] = Path(
        "grid.png"
    ),
    actions: Annotated[
        str | None,
        typer.Option(help="Dataset directory, or .npy/.npz of NORMALISED actions, to show on it."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Card of the dataset; its card.yaml if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was drawn as JSON.")] = False,
) -> None:
    """Draw distribution, fit, bins and their use per axis, and what encoding loses.

    Of more than 100,000 actions a random sample of so many is shown.

    Example: spatialvla-ft grids plot grid.json --actions data/my_robot/1.0.0 --out grid.png
    """
    from spatialvla_ft.actions.grid_io import load_grid
    from spatialvla_ft.data.stats.grid_actions import read_actions
    from spatialvla_ft.viz.grids import save_grid_plot

    with fail_with():
        grid = load_grid(grid_file)
        given = None if actions is None else read_actions(actions, card=card, split=split)
        title = f"Action grid {grid_file.name}" + (f" on {given.name}" if given else "")
        save_grid_plot(out, grid, None if given is None else given.sample, title=title)
    if as_json:
        count = 0 if given is None else len(given.sample)
        typer.echo(json.dumps({"plot": str(out), "bins": list(grid.bins), "num_actions": count}))
    else:
        typer.echo(f"picture written to {out}")
