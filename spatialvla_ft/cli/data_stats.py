"""`spatialvla-ft data stats`: statistics of a dataset's actions."""

import json
from pathlib import Path
from typing import Annotated

import typer


def stats(
    dataset_dir: Annotated[Path, typer.Argument(help="Version directory, or an index.")],
    card: Annotated[
        Path | None, typer.Option(help="Card file; DATASET_DIR/card.yaml if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to count.")] = "train",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print them in the layout of a checkpoint.")
    ] = False,
) -> None:
    """Statistics of the standardised actions, in the robot's units.

    Example: spatialvla-ft data stats data/bridge_orig/1.0.0 --card data_mixtures/oxe_cards.yaml
    """
    from rich.console import Console
    from rich.table import Table

    from spatialvla_ft.data import DatasetError, open_dataset
    from spatialvla_ft.data.statistics import dataset_statistics

    try:
        dataset = open_dataset(dataset_dir, card=card, split=split)
        found = dataset_statistics(dataset)
    except DatasetError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({dataset.name: found.to_dict()}))
        return
    fields = ("mean", "std", "min", "q01", "q99", "max")
    table = Table(
        title=f"{dataset.name}, split {split}: {found.num_transitions} actions of "
        f"{found.num_trajectories} episodes"
    )
    table.add_column("dimension", no_wrap=True)
    for heading in (*fields, "scaled", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    space = dataset.action_space
    for i, (name, unit) in enumerate(zip(space.names, space.units, strict=True)):
        values = [f"{getattr(found, field)[i]:.3g}" for field in fields]
        label = f"{name}, {unit}" if len(unit) < 5 else name
        remark = "constant" if found.constant[i] else "q01 = q99" if found.degenerate[i] else ""
        table.add_row(label, *values, "yes" if found.mask[i] else "no", remark)
    Console().print(table)
