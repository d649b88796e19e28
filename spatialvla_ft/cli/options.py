"""Options that several commands have, said once: what a policy is shown, and which mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON.")]

Base = Annotated[str | None, typer.Option(help="An adapter's base, if it is not where it was.")]
CardFile = Annotated[Path | None, typer.Option(help="Dataset card; default card.yaml.")]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
UnnormKey = Annotated[
    str | None, typer.Option(help="Statistics to decode with; default the dataset's own.")
]

MixtureFile = Annotated[
    Path | None, typer.Option(help="File of the mixture; the published ones if not given.")
]
MixtureRoot = Annotated[
    Path | None, typer.Option(help="Where the mixture's datasets lie as NAME/VERSION.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out this dataset, or this list of the mixture's file (such as "
        "tokenizer_gaussian); may be given several times."
    ),
]
AtOnce = Annotated[
    int | None, typer.Option(help="Datasets that are read at once; one per core if not given.")
]


def only_with_mixture(**given: object) -> None:
    """ValueError for options that belong to --mixture, where there is none."""
    if extra := [
        f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, False)
    ]:
        raise ValueError(f"{', '.join(extra)}: for --mixture only; leave out without it")
