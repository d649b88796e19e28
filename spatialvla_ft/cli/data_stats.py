"""`spatialvla-ft data stats`: statistics of the actions of a dataset, or of a mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialvla_ft.cli.options import AtOnce, Exclude, MixtureFile, MixtureRoot, only_with_mixture

if TYPE_CHECKING:
    from spatialvla_ft.cli.console import Tell

FIELDS = ("mean", "std", "min", "q01", "q99", "max")


def stats(
    dataset_dir: Annotated[
        str | None,
        typer.Argument(
            help="RLDS version directory or index, LeRobot folder, or an address; or --mixture."
        ),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Card file; DATASET_DIR/card.yaml if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to count.")] = "train",
    mixture: Annotated[
        str | None, typer.Option(help="A mixture by name: its datasets, and all as drawn.")
    ] = None,
    file: MixtureFile = None,
    root: MixtureRoot = None,
    exclude: Exclude = None,
    every_fit: Annotated[
        bool, typer.Option("--every-fit", help="Show the fits of each dataset of a mixture too.")
    ] = False,
    workers: AtOnce = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON (docs/statistics.md).")
    ] = False,
    checkpoint_json: Annotated[
        bool,
        typer.Option(
            "--checkpoint-json", help="Print the statistics in the layout of a checkpoint."
        ),
    ] = False,
) -> None:
    """Statistics of the standardised actions in the robot's units, and fits of the normalised ones.

    What was computed is kept with the dataset until its content or its card changes.

    Example: spatialvla-ft data stats data/bridge_orig/1.0.0 --card data_mixtures/oxe_cards.yaml
    """
    from spatialvla_ft.cli.console import fail_with, telling
    from spatialvla_ft.data.stats.scan import check_workers

    with fail_with(), telling(quiet=as_json) as tell:
        at_once = check_workers(workers)
        if (dataset_dir is None) == (mixture is None):
            raise ValueError("give a dataset directory or --mixture NAME, and not both")
        if as_json and checkpoint_json:
            raise ValueError("give --json or --checkpoint-json, and not both")
        if mixture is None:
            only_with_mixture(file=file, root=root, exclude=exclude, every_fit=every_fit)
            assert dataset_dir is not None
            found = _dataset(dataset_dir, card, split, tell)
        else:
            if card is not None or split != "train":
                raise ValueError("--card and --split of a mixture's datasets stand in its file")
            found = _mixture(mixture, file, root, exclude or [], at_once, tell)
    if checkpoint_json:
        typer.echo(json.dumps(found.pop("checkpoint")))
    elif as_json:
        del found["checkpoint"]
        typer.echo(json.dumps(found))
    else:
        _show(found, every_fit)


def _dataset(place: str, card: Path | None, split: str, tell: Tell) -> dict[str, Any]:
    from spatialvla_ft.data import open_dataset
    from spatialvla_ft.data.stats.fits import MixtureActions
    from spatialvla_ft.data.stats.report import checkpoint_layout, fit_report
    from spatialvla_ft.data.stats.scan import scan_datasets

    dataset = open_dataset(place, card=card, split=split)
    scans = scan_datasets([dataset], 1, tell=tell)
    scan = scans[dataset.name]
    actions = MixtureActions([dataset], {dataset.name: scan.statistics}, [1.0])
    source = {"kind": "dataset", "name": dataset.name, "split": split}
    drawn = (actions.summary(), scan.gaussians, scan.quantiles)
    report = fit_report(source, [dataset], scans, [1.0], (), drawn)
    return {**report, "checkpoint": checkpoint_layout(scans)}


def _mixture(
    name: str,
    file: Path | None,
    root: Path | None,
    exclude: list[str],
    workers: int,
    tell: Tell,
) -> dict[str, Any]:
    """Each dataset by itself, then all normalised, as they are drawn."""
    from spatialvla_ft.data.stats.report import checkpoint_layout, fit_report
    from spatialvla_ft.data.stats.scan import open_mixture_actions, sum_up

    found = open_mixture_actions(name, file, root, exclude, workers, tell=tell)
    summary, quantiles = sum_up(found.actions, workers, tell=tell)
    drawn = (summary, found.actions.gaussians(), quantiles)
    source = {"kind": "mixture", "name": name, "file": file and str(file)}
    report = fit_report(source, found.datasets, found.scans, found.shares, found.excluded, drawn)
    return {**report, "checkpoint": checkpoint_layout(found.scans)}


def _show(report: dict[str, Any], every_fit: bool) -> None:
    """Everything as tables."""
    from rich.console import Console

    console = Console()
    of_mixture = report["source"]["kind"] == "mixture"
    for name, part in report["datasets"].items():
        share = f"{part['share']:.2%} of the draws" if of_mixture else report["source"]["split"]
        console.print(_numbers(f"{name}, {share if of_mixture else 'split ' + share}", part))
        for what, (gone, of) in part["dropped"].items():
            console.print(f"{gone} of {of} {what} left out", highlight=False)
        if every_fit or not of_mixture:
            console.print(_fits(name, part["fits"]))
    if of_mixture:
        title = f"{report['source']['name']} as drawn, normalised"
        console.print(_numbers(title, report["as_drawn"]))
        if report["excluded_from_fits"]:
            gone = ", ".join(report["excluded_from_fits"])
            console.print(f"without {gone}, as asked for", highlight=False, soft_wrap=True)
        console.print(_fits(report["source"]["name"], report["as_drawn"]["fits"]))
    console.print(_exactness(report), highlight=False, soft_wrap=True)


def _numbers(title: str, part: dict[str, Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from spatialvla_ft.inspection.facts import short_number

    found = part["statistics"]
    table = Table(
        title=f"{title}: {found['count']} actions of {found['episodes']} episodes", box=SIMPLE_HEAD
    )
    table.add_column("dimension", no_wrap=True)
    for heading in FIELDS:
        table.add_column(heading, justify="right", no_wrap=True)
    notes = {name: _note(numbers) for name, numbers in found["dimensions"].items()}
    # Below the table: a column of their own would not fit into 80 letters.
    table.caption = "; ".join(f"{name}: {note}" for name, note in notes.items() if note)
    table.caption_justify = "left"
    for name, numbers in found["dimensions"].items():
        unit = numbers["unit"]
        label = f"{name}, {unit}" if len(unit) < 5 else name
        values = [short_number(numbers[field]) for field in FIELDS]
        table.add_row(label, *values)
    return table


def _note(numbers: dict[str, Any]) -> str:
    """What is unusual about a dimension."""
    if numbers["constant"]:
        return "constant"
    if numbers["widened"]:
        low, high = numbers["range"]
        why = "q01 = q99" if numbers["degenerate"] else "seldom moves"
        return f"{why}, so its range is {low:.3g} to {high:.3g}"
    if numbers["degenerate"]:
        return "q01 = q99"
    return "" if numbers["normalised"] else "not normalised"


def _fits(name: str, fits: dict[str, Any]) -> Any:
    """Gaussian and quantile fit of every axis, side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"Fits of {name}, normalised (theta, phi in radians)"
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in ("axis", "mu", "sigma"):
        table.add_column(heading, justify="left" if heading == "axis" else "right", no_wrap=True)
    table.add_column("edges of bins with equal counts", overflow="fold")
    for axis in dict.fromkeys([*fits["gaussian"], *fits["quantile"]]):
        known = fits["gaussian"].get(axis)
        fitted = (f"{known['mu']:.4f}", f"{known['sigma']:.4f}") if known else ("", "")
        edges = fits["quantile"].get(axis, {"edges": []})["edges"]
        table.add_row(axis, *fitted, " ".join(f"{edge:.3g}" for edge in edges))
    return table


def _exactness(report: dict[str, Any]) -> str:
    """What is exact, and the bound where something is not."""
    fits = [*(part["fits"] for part in report["datasets"].values()), report["as_drawn"]["fits"]]
    errors = [axis["error"] for fit in fits for axis in fit["quantile"].values()]
    if not max(errors, default=0.0):
        return "All numbers are exact: every action was counted, none was sampled."
    return (
        "q01 and q99 are exact, from every action. Edges of bins with equal counts lie at most "
        f"{max(errors):.1g} below the true quantiles, since an axis has more distinct numbers than "
        "are kept apart (--json says which)."
    )
