"""`spatialvla-ft recipes`: the recipes that come with the toolkit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from spatialvla_ft.cli.options import AsJson


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show this one, with its header, as it is written.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with the toolkit; `train` and others take them by name.

    The header of each says what it needs and what to expect. A recipe of your own may build on
    one: `extends: adapt_lora`.

    Example: spatialvla-ft recipes adapt_lora
    """
    from spatialvla_ft.cli.console import fail_with
    from spatialvla_ft.shipped import no_recipe, shipped_folder, shipped_recipes

    known = shipped_recipes()
    with fail_with():
        if name is not None and name not in known:
            raise ValueError(no_recipe(name))
    if as_json:
        chosen = known if name is None else {name: known[name]}
        rows = [{"name": n, "about": _about(file), "file": str(file)} for n, file in chosen.items()]
        typer.echo(json.dumps(rows))
    elif name is not None:
        typer.echo(known[name].read_text(encoding="utf-8"), nl=False)
    else:
        _list(known, shipped_folder("recipes"))


def _about(file: Path) -> str:
    """The first sentence of a recipe's header."""
    lines = file.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("# "))
    text = " ".join(" ".join(lines[:end]).replace("#", " ").split())
    return text.split(". ")[0].rstrip(".")


def _list(known: dict[str, Path], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    toys = [name.removeprefix("toy/") for name in known if "/" in name]
    for name in known:
        if "/" not in name:
            table.add_row(name, _about(known[name]))
    console.print(table)
    console.print(f"\ntoy/NAME is two steps at toy size, after debug: {', '.join(toys)}")
    console.print(f"Their files, and those of launchers, are in {folder}", soft_wrap=True)
