"""`spatialvla-ft grids compare`: what each kind of grid loses, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def compare(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[INPUT]...", help="Dataset directories (RLDS) of one-armed robots."
        ),
    ] = None,
    made_up: Annotated[
        bool, typer.Option(help="Also skewed, two-mode and mostly motionless random actions.")
    ] = True,
    min_sigma: Annotated[float, typer.Option(help="Raise smaller sigmas to this.")] = 0.0,
    split: Annotated[str, typer.Option(help="Split of the datasets.")] = "train",
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> None:
    """Compare uniform, Gaussian and quantile grids, with and without zero bins.

    Every grid has the default size, is fitted to the first half of the actions and tried on the
    second. Errors are root mean squares per dimension.

    Example: spatialvla-ft grids compare data/robot_a/1.0.0 data/robot_b/1.0.0
    """
    import numpy as np

    from spatialvla_ft.actions.compare import compare_grids, made_up_sources
    from spatialvla_ft.data import open_dataset
    from spatialvla_ft.data.statistics import dataset_statistics

    lines = []
    try:
        for source in sources or []:
            dataset = open_dataset(source, card=None, split=split)
            if dataset.action_space.names[:6] != ("x", "y", "z", "roll", "pitch", "yaw"):
                raise ValueError(
                    f"{source} has actions {dataset.action_space.names}; this command compares "
                    "grids of one arm (x, y, z, roll, pitch, yaw, gripper)"
                )
            known = dataset_statistics(dataset)
            actions = np.asarray(dataset.actions(), np.float64)
            lines += compare_grids(dataset.name, actions, known, min_sigma=min_sigma)
        if made_up:
            for name, actions in made_up_sources().items():
                lines += compare_grids(name, actions, None, min_sigma=min_sigma)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps([line.to_dict() for line in lines]))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(title="RMSE of encoding and decoding (normalised; mm and mrad of the robot)")
    columns = ("source", "bins", "decoding", "zero bin")
    numbers = ("translation", "mm", "rotation", "mrad", "keeping still")
    for name in columns:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            line.source,
            line.kind,
            line.decoding,
            "yes" if line.zero_bin else "no",
            f"{line.translation:.4f}",
            "" if line.translation_mm is None else f"{line.translation_mm:.3f}",
            f"{line.rotation:.4f}",
            "" if line.rotation_mrad is None else f"{line.rotation_mrad:.2f}",
            f"{line.still:.4f}",
        )
    Console().print(table)
