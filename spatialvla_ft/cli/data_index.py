"""`spatialvla-ft data index`: index an RLDS dataset."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def index(
    dataset_dir: Annotated[Path, typer.Argument(help="Version directory, e.g. bridge_orig/1.0.0.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory of the index; DATASET_DIR/frame_index.")
    ] = None,
    crc: Annotated[bool, typer.Option(help="Check the CRC of every record.")] = True,
    rebuild: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Index an RLDS dataset, so that any frame can be read at once.

    Example: spatialvla-ft data index data/bridge_orig/1.0.0
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from spatialvla_ft.data import DatasetError, build_index

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("shards", total=None)

            def advance(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            found = build_index(
                dataset_dir, out=out, verify_crc=crc, rebuild=rebuild, progress=advance
            )
    except DatasetError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    summary: dict[str, Any] = {
        "dataset": f"{found.name}/{found.version}",
        "index": str(found.path),
        "episodes": found.num_episodes,
        "steps": found.num_steps,
        "splits": {name: len(episodes) for name, episodes in found.splits.items()},
        "images": list(found.image_keys),
        "crc_verified": found.crc_verified,
    }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    splits = ", ".join(f"{name} {count}" for name, count in summary["splits"].items())
    typer.echo(f"{summary['dataset']}: {found.num_steps} steps in {found.num_episodes} episodes")
    typer.echo(f"episodes per split: {splits}")
    typer.echo(f"images of a step: {', '.join(found.image_keys) or 'none'}")
    typer.echo(f"index: {found.path} (CRC {'checked' if found.crc_verified else 'NOT checked'})")
