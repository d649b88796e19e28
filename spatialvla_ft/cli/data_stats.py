"""`spatialvla-ft data stats`: statistics of the actions of a dataset, or of a mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from spatialvla_ft.actions.fit_blocks import Gaussians
    from spatialvla_ft.actions.normalise import ActionStatistics
    from spatialvla_ft.data.sample_dataset import SampleDataset

FIELDS = ("mean", "std", "min", "q01", "q99", "max")


def stats(
    dataset_dir: Annotated[
        Path | None, typer.Argument(help="Version directory, or an index; or give --mixture.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Card file; DATASET_DIR/card.yaml if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to count.")] = "train",
    mixture: Annotated[
        str | None, typer.Option(help="A mixture by name: its datasets, and all as drawn.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="File of the mixture; the published ones if not given.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where the mixture's datasets lie as NAME/VERSION.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A dataset to leave out of the mixture's fits.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print them in the layout of a checkpoint.")
    ] = False,
) -> None:
    """Statistics of the standardised actions in the robot's units, and Gaussian fits.

    Example: spatialvla-ft data stats data/bridge_orig/1.0.0 --card data_mixtures/oxe_cards.yaml
    """
    from spatialvla_ft.cli.console import fail_with

    with fail_with(ValueError, OSError):
        if (dataset_dir is None) == (mixture is None):
            raise ValueError("give a dataset directory or --mixture NAME, and not both")
        if mixture is not None:
            _mixture(mixture, file, root, exclude or [], as_json)
        else:
            assert dataset_dir is not None
            _dataset(dataset_dir, card, split, as_json)


def _dataset(folder: Path, card: Path | None, split: str, as_json: bool) -> None:
    from spatialvla_ft.data import open_dataset
    from spatialvla_ft.data.fits import MixtureActions
    from spatialvla_ft.data.statistics import dataset_statistics

    dataset = open_dataset(folder, card=card, split=split)
    found = dataset_statistics(dataset)
    if as_json:
        typer.echo(json.dumps({dataset.name: found.to_dict()}))
        return
    _show(f"{dataset.name}, split {split}", dataset, found)
    _show_gaussians(MixtureActions([dataset], {dataset.name: found}, [1.0]).gaussians())


def _mixture(
    name: str, file: Path | None, root: Path | None, exclude: list[str], as_json: bool
) -> None:
    """Each dataset by itself, then all normalised, as they are drawn."""
    from spatialvla_ft.data.fits import MixtureActions
    from spatialvla_ft.data.mixtures import find_mixture, open_mixture
    from spatialvla_ft.data.statistics import dataset_statistics

    opened = open_mixture(find_mixture(name, file), root=root, cameras=())
    statistics = {dataset.name: dataset_statistics(dataset) for dataset in opened.datasets}
    actions = MixtureActions(opened.datasets, statistics, opened.weights)
    if exclude:
        actions = actions.without(exclude)
    whole, gaussians = actions.summary(), actions.gaussians()
    if as_json:
        content: dict[str, Any] = {
            "shares": dict(zip(statistics, opened.weights, strict=True)),
            "datasets": {key: found.to_dict() for key, found in statistics.items()},
            "dropped": {dataset.name: dataset.dropped for dataset in opened.datasets},
            "normalised": whole.to_dict(),
            "gaussians": gaussians,
        }
        typer.echo(json.dumps(content))
        return
    for dataset, share in zip(opened.datasets, opened.weights, strict=True):
        title = f"{dataset.name}, {share:.2%} of the draws"
        _show(title, dataset, statistics[dataset.name])
    _show(f"{name} as drawn, normalised", opened.datasets[0], whole)
    _show_gaussians(gaussians)


def _show(title: str, dataset: SampleDataset, found: ActionStatistics) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{title}: {found.num_transitions} actions of {found.num_trajectories} episodes"
    )
    table.add_column("dimension", no_wrap=True)
    for heading in (*FIELDS, "scaled", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    space = dataset.action_space
    for i, (name, unit) in enumerate(zip(space.names, space.units, strict=True)):
        values = [f"{getattr(found, field)[i]:.3g}" for field in FIELDS]
        label = f"{name}, {unit}" if len(unit) < 5 and "normalised" not in title else name
        remark = "constant" if found.constant[i] else "q01 = q99" if found.degenerate[i] else ""
        table.add_row(label, *values, "yes" if found.mask[i] else "no", remark)
    console = Console()
    console.print(table)
    if "normalised" not in title:
        for what, (gone, of) in dataset.dropped.items():
            console.print(f"{gone} of {of} {what} left out", highlight=False)


def _show_gaussians(gaussians: Gaussians) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Gaussian fit of the normalised actions (theta, phi in radians)")
    for heading in ("axis", "mu", "sigma"):
        table.add_column(heading, justify="left" if heading == "axis" else "right")
    for axis, fit in gaussians.items():
        table.add_row(axis, f"{fit['mu']:.4f}", f"{fit['sigma']:.4f}")
    Console().print(table)
