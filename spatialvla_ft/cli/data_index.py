"""`spatialvla-ft data index`: index an RLDS dataset."""

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from spatialvla_ft.cli.console import fail_with, telling


class BadRecord(StrEnum):
    """What to do about a record that cannot be read."""

    fail = "fail"
    skip = "skip"


def index(
    dataset_dir: Annotated[
        str, typer.Argument(help="Version directory, e.g. bridge_orig/1.0.0, or its URL.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Directory of the index; DATASET_DIR/frame_index.")
    ] = None,
    crc: Annotated[bool, typer.Option(help="Check the CRC of every record.")] = True,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Shards to scan at once; as suits the machine.")
    ] = None,
    on_bad_record: Annotated[
        BadRecord, typer.Option(help="Of a damaged record: stop, or leave it out and say so.")
    ] = BadRecord.fail,
    rebuild: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Index an RLDS dataset, so that any frame can be read at once.

    Shards that were added since are scanned alone; a dataset that changed otherwise is refused
    until --rebuild.

    Example: spatialvla-ft data index data/bridge_orig/1.0.0
    """
    from spatialvla_ft.data import build_index

    with fail_with(), telling(in_bytes=True) as tell:
        scanned, start = 0, time.perf_counter()

        def advance(done: int, total: int) -> None:
            nonlocal scanned
            scanned = done
            tell("shards", done, total)

        found = build_index(
            dataset_dir,
            out=out,
            verify_crc=crc,
            rebuild=rebuild,
            progress=advance,
            workers=workers,
            on_bad_record=on_bad_record.value,
            on_bad_column="skip",
        )
        seconds = time.perf_counter() - start
    summary: dict[str, Any] = {
        "dataset": f"{found.name}/{found.version}",
        "index": str(found.path),
        "episodes": found.num_episodes,
        "steps": found.num_steps,
        "splits": {name: len(episodes) for name, episodes in found.splits.items()},
        "images": list(found.image_keys),
        "crc_verified": found.crc_verified,
        "skipped_episodes": found.num_skipped,
        "skipped": found.skipped,
        "unread_columns": found.unread,
        "scanned_bytes": scanned,
        "seconds": round(seconds, 3),
    }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    splits = ", ".join(f"{name} {count}" for name, count in summary["splits"].items())
    typer.echo(f"{summary['dataset']}: {found.num_steps} steps in {found.num_episodes} episodes")
    typer.echo(f"episodes per split: {splits}")
    typer.echo(f"images of a step: {', '.join(found.image_keys) or 'none'}")
    typer.echo(f"index: {found.path} (CRC {'checked' if found.crc_verified else 'NOT checked'})")
    if scanned:
        size = scanned / 2**20
        typer.echo(f"scanned {size:.0f} MiB in {seconds:.1f} s: {size / seconds:.0f} MiB/s")
    else:
        typer.echo("scanned nothing: the index was there")
    if found.unread:
        typer.echo(
            f"left out {len(found.unread)} columns, which a card may not name: "
            + "; ".join(found.unread.values())
        )
    if found.incomplete:
        typer.echo(f"warning: {found.incomplete}", err=True)
