"""`spatialvla-ft data inspect`: what a dataset holds, and what about it smells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatialvla_ft.cli.console import fail_with

if TYPE_CHECKING:
    from rich.console import Console

    from spatialvla_ft.inspection import Inspection

SHORT = 12
"""Letters of a first column that is never broken, however narrow the terminal."""
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def inspect(
    dataset_dir: Annotated[
        str, typer.Argument(help="RLDS version directory or index, LeRobot folder, or an address.")
    ],
    card: Annotated[
        Path | None,
        typer.Option(help="Card file; DATASET_DIR/card.yaml, or one is drafted, if not given."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page of HTML with pictures.")] = None,
    draft_card: Annotated[
        Path | None, typer.Option(help="Write the drafted card to this file.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to look at.")] = "train",
    episodes: Annotated[
        int, typer.Option(help="Episodes to look at, spread evenly over the split.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Look at a dataset: features, rates, cameras, actions, words, and what smells.

    Without a card one is drafted from names, shapes and numbers. The exit code is 0 whatever is
    found; it is 1 where the dataset cannot be read.

    Example: spatialvla-ft data inspect datasets/my_robot/1.0.0 --out page.html
    """
    from rich.console import Console

    from spatialvla_ft.data import DatasetError
    from spatialvla_ft.inspection import draft_for, inspect_dataset

    with fail_with():
        if draft_card is not None and draft_card.exists():
            raise DatasetError(f"--draft-card: {draft_card} exists; give another file")
        seen = inspect_dataset(dataset_dir, card=card, split=split, episodes=episodes)
        if draft_card is not None:
            draft = seen.draft or draft_for(seen.source, split=split, episodes=episodes)
            draft_card.parent.mkdir(parents=True, exist_ok=True)
            draft_card.write_text(draft.to_yaml(), encoding="utf-8")
        if out is not None:
            from spatialvla_ft.viz.inspection import write_inspection

            write_inspection(seen, out)
    if as_json:
        typer.echo(json.dumps(seen.to_dict()))
        return
    console = Console()
    _show(seen, console)
    for path, what in ((out, "page"), (draft_card, "drafted card")):
        if path is not None:
            console.print(f"{what}: {path}", highlight=False, soft_wrap=True)


def _show(seen: Inspection, console: Console) -> None:
    """Everything but the pictures."""
    from rich.text import Text

    from spatialvla_ft.inspection import facts

    console.print(Text(seen.name, style="bold"), Text(facts.summary(seen)))
    _findings(seen, console)
    for title, head, rows in facts.tables(seen):
        console.print(_table(title, head, rows))
    if seen.draft:
        console.print(Text("Drafted card: check every CHECK before you use it", style="bold"))
        console.print(Text(seen.draft.to_yaml()), soft_wrap=True)


def _findings(seen: Inspection, console: Console) -> None:
    from rich.text import Text

    if not seen.findings:
        console.print("[green]nothing smells[/]")
    for finding in seen.findings:
        line = Text(finding.severity, style=_COLOURS[finding.severity])
        line.append(f" {finding.rule}", style="bold")
        line.append(f", {finding.where}: {finding.evidence}")
        console.print(line)
        console.print(Text(f"    {finding.cure}", style="dim"))


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for i, heading in enumerate(head):
        number = all(row[i][:1] in "-0123456789" for row in rows if row[i])
        short = max((len(row[i]) for row in rows), default=0) <= SHORT
        table.add_column(
            heading,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number or (i == 0 and short),
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
