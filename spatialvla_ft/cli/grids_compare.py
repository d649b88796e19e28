"""`spatialvla-ft grids compare`: what each kind of grid loses, in one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from spatialvla_ft.cli.console import fail_with, telling
from spatialvla_ft.cli.options import (
    AtOnce,
    Exclude,
    MixtureFile,
    MixtureRoot,
    Split,
    only_with_mixture,
)

if TYPE_CHECKING:
    from spatialvla_ft.actions.reconstruction import Trial
    from spatialvla_ft.data.stats.fits import MixtureActions


def compare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...", help="RLDS version directories or LeRobot folders, of one arm."
        ),
    ] = None,
    mixture: Annotated[
        str | None, typer.Option(help="Also this mixture, as it is drawn; of one-armed robots.")
    ] = None,
    file: MixtureFile = None,
    root: MixtureRoot = None,
    exclude: Exclude = None,
    workers: AtOnce = None,
    made_up: Annotated[
        bool, typer.Option(help="Also skewed, two-mode and mostly motionless random actions.")
    ] = True,
    min_sigma: Annotated[float, typer.Option(help="Raise smaller sigmas to this.")] = 0.0,
    split: Split = "train",
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> None:
    """Compare uniform, Gaussian and quantile grids, with and without zero bins.

    Every grid has the default size, is fitted to the first half of the actions of each dataset
    and tried on the second, or on 100,000 actions drawn from it where that has more, or of a
    mixture. Errors are root mean squares per dimension.

    Example: spatialvla-ft grids compare data/robot_a/1.0.0 data/robot_b/1.0.0
    """
    from spatialvla_ft.actions.reconstruction import compare_grids, compare_trials, made_up_sources
    from spatialvla_ft.data import open_dataset
    from spatialvla_ft.data.stats.fits import MixtureActions
    from spatialvla_ft.data.stats.scan import check_workers, open_mixture_actions
    from spatialvla_ft.data.stats.statistics import dataset_statistics

    lines = []
    with fail_with(), telling(quiet=as_json) as tell:
        given: list[tuple[str, MixtureActions]] = []
        for source in sources or []:
            dataset = open_dataset(source, card=None, split=split)
            known = {dataset.name: dataset_statistics(dataset)}
            given.append((dataset.name, MixtureActions([dataset], known, [1.0])))
        if mixture is not None:
            found = open_mixture_actions(
                mixture, file, root, exclude or [], check_workers(workers), tell=tell
            )
            given.append((mixture, found.actions))
        else:
            only_with_mixture(file=file, root=root, exclude=exclude)
        for name, actions in given:
            _refuse_others(actions)
            lines += compare_trials(name, _trial(actions), min_sigma=min_sigma)
        if made_up:
            for name, normalised in made_up_sources().items():
                lines += compare_grids(name, normalised, None, min_sigma=min_sigma)
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


def _refuse_others(actions: MixtureActions) -> None:
    """ValueError unless all actions are those of one arm."""
    for dataset in actions.datasets:
        if dataset.action_space.names[:6] != ("x", "y", "z", "roll", "pitch", "yaw"):
            raise ValueError(
                f"{dataset.name} has actions {dataset.action_space.names}; this command compares "
                "grids of one arm (x, y, z, roll, pitch, yaw, gripper)"
            )


def _trial(actions: MixtureActions) -> Callable[[bool], Trial]:
    """Fit to the first half of every dataset, try on the second."""
    from spatialvla_ft.actions.reconstruction import Trial
    from spatialvla_ft.data.stats.fits import first_half, sample_actions

    def trial(zero_bin: bool) -> Trial:
        chosen = actions.symmetric() if zero_bin else actions
        drawn = zip(chosen.datasets, chosen.shares, strict=True)
        return Trial(
            fitting=lambda: first_half(chosen),
            trying=sample_actions(chosen, second_half=True).astype("float64"),
            statistics=[chosen.statistics[dataset.name] for dataset, share in drawn if share > 0],
        )

    return trial
