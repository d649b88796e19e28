"""`spatialvla-ft grids resize`: a checkpoint on another action grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def resize(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder, or a training run that ended in one.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the resized checkpoint.")],
    grid: Annotated[
        Path | None, typer.Option(help="grid.json of `grids fit`, or a checkpoint with the grid.")
    ] = None,
    bins: Annotated[
        str | None,
        typer.Option(
            help="Instead of --grid: cut the checkpoint's own distribution into so many bins "
            "(theta,phi,r,roll,pitch,yaw,gripper of one arm). They decode to means of the fitted "
            "Gaussian; a grid of `grids fit` knows those of the data."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Random inputs of the checks.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Interpolate a checkpoint's spatial table, and its head's action rows, to another grid.

    Nothing is trained. Tokenizer, configuration and processor grow or shrink along; statistics
    stay. The new folder is loaded again and compared before it appears; exit code 1 otherwise.

    Example: spatialvla-ft grids resize exports/b --bins 32,64,8,16,16,16,2 --out exports/b_fine
    Or: spatialvla-ft grids resize exports/b --grid grid.json --out exports/b_new
    """
    from spatialvla_ft.cli.console import fail_with

    with fail_with():
        if (grid is None) == (bins is None):
            raise ValueError(
                "give exactly one of --grid grid.json (`spatialvla-ft grids fit` writes it) and "
                "--bins 16,32,8,16,16,16,2"
            )
        from spatialvla_ft.actions.grid_io import load_grid
        from spatialvla_ft.data.stats.grid_actions import read_bins
        from spatialvla_ft.export.resized import resize_checkpoint

        done = resize_checkpoint(
            checkpoint,
            out,
            grid=None if grid is None else load_grid(grid),
            bins=None if bins is None else read_bins(bins),
            samples=samples,
        )
    if as_json:
        typer.echo(json.dumps(done.to_dict()))
        return
    old, new = ("x".join(map(str, counts)) for counts in done.bins)
    what = "table and head's action rows" if done.head_rows else "table, which the head uses too,"
    typer.echo(
        "the new grid cuts where the old one does: every weight is as it was"
        if done.same_edges
        else f"bins {old} to {new}, {done.tokens[0]:,} to {done.tokens[1]:,} action tokens: {what} "
        "interpolated"
    )
    typer.echo(
        f"predicted actions moved by {done.mean_change:.3g} on average and {done.max_change:.3g} "
        f"at most (normalised, of a range of 2) on {done.inputs}"
    )
    typer.echo(
        f"{done.out}: {done.parameters:,} parameters in {done.dtype}; loaded again, it sees and "
        "gives the same answers. Stored answers and a model card come with `spatialvla-ft export`"
    )
