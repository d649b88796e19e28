"""`spatialvla-ft grids fit`, `plot` and `resize`: action grids of a robot, and of a checkpoint."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialvla_ft.cli.console import fail_with, telling
from spatialvla_ft.cli.options import (
    AsJson,
    AtOnce,
    Exclude,
    MixtureFile,
    MixtureRoot,
    Split,
    only_with_mixture,
)

if TYPE_CHECKING:
    from spatialvla_ft.actions import ActionGrid
    from spatialvla_ft.data.stats.grid_actions import GridActions


class Kind(StrEnum):
    """Where the bin edges come from."""

    gaussian = "gaussian"
    quantile = "quantile"
    uniform = "uniform"


class Decoding(StrEnum):
    """What a token decodes to."""

    mean = "mean"
    midpoint = "midpoint"


def fit(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[INPUT]",
            help="RLDS version directory, LeRobot folder, or a .npy/.npz of NORMALISED actions "
            "(n, 7); or give --mixture.",
        ),
    ] = None,
    kind: Annotated[
        Kind, typer.Option(help="Bins of equal probability, of equal counts, or of equal width.")
    ] = Kind.gaussian,
    bins: Annotated[
        str | None,
        typer.Option(
            help="Bins in the order of the action: of one arm theta,phi,r,roll,pitch,yaw,gripper, "
            "16,32,8,16,16,16,2 if not given; 256 of a joint."
        ),
    ] = None,
    min_sigma: Annotated[
        float, typer.Option(help="Raise smaller sigmas to this; the released mixture used 0.5.")
    ] = 0.0,
    decoding: Annotated[
        Decoding,
        typer.Option(
            help="A token decodes to the mean of these actions in its bin, or its middle."
        ),
    ] = Decoding.mean,
    zero_bin: Annotated[
        bool, typer.Option("--zero-bin", help="Give no motion bins that decode to exactly that.")
    ] = False,
    card: Annotated[
        Path | None, typer.Option(help="Card of the dataset; INPUT/card.yaml if not given.")
    ] = None,
    split: Split = "train",
    mixture: Annotated[
        str | None, typer.Option(help="Fit to a mixture, as it is drawn; its name.")
    ] = None,
    file: MixtureFile = None,
    root: MixtureRoot = None,
    exclude: Exclude = None,
    workers: AtOnce = None,
    out: Annotated[Path | None, typer.Option(help="Write the grid here, e.g. grid.json.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of it here (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fit an action grid and say what it loses.

    Every action counts for the fit, of a mixture as often as it is drawn. Errors are those of all
    actions too, or of a random sample of 100,000 where there are more, or of a mixture.

    Example: spatialvla-ft grids fit data/my_robot/1.0.0 --out grid.json --plot grid.png
    """
    from spatialvla_ft.actions.grid_io import save_grid
    from spatialvla_ft.data.stats.grid_actions import (
        grid_report,
        read_actions,
        read_bins,
        read_mixture,
    )
    from spatialvla_ft.data.stats.scan import check_workers

    with fail_with(), telling(quiet=as_json) as tell:
        if (source is None) == (mixture is None):
            raise ValueError("give INPUT or --mixture NAME, and not both")
        if source is not None:
            only_with_mixture(file=file, root=root, exclude=exclude, workers=workers)
            given = read_actions(source, card=card, split=split, zero_bin=zero_bin)
        else:
            assert mixture is not None
            if card is not None or split != "train":
                raise ValueError("--card and --split of a mixture's datasets stand in its file")
            given = read_mixture(
                mixture,
                file=file,
                root=root,
                exclude=exclude or [],
                workers=check_workers(workers),
                zero_bin=zero_bin,
                tell=tell,
            )
        counts = None if bins is None else read_bins(bins)
        grid = _fit(given, kind.value, counts, min_sigma, zero_bin, decoding.value)
        report = grid_report(grid, given)
        if plot is not None:
            from spatialvla_ft.viz.grids import save_grid_plot

            save_grid_plot(plot, grid, given.sample, title=f"Action grid of {given.name}")
        if out is not None:
            save_grid(grid, out)
    report |= {"out": out and str(out), "plot": plot and str(plot)}
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _show(report, given)


def _fit(
    given: GridActions,
    kind: Any,
    bins: tuple[int, ...] | None,
    min_sigma: float,
    zero_bin: bool,
    decoding: Any,
) -> ActionGrid:
    if min_sigma and kind != "gaussian":
        raise ValueError(f"--min-sigma is {min_sigma:g}, but --kind {kind} fits no Gaussian")
    grid = given.fit(kind, bins=bins, min_sigma=min_sigma, zero_bin=zero_bin)
    grid.decoding = decoding
    return grid


def _show(report: dict[str, Any], given: GridActions) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{report['kind']} grid of {report['num_actions']:,} actions of {report['source']}: "
        f"{report['num_tokens']} tokens; in use "
        + ", ".join(f"{t['used']} of {t['of']} {name}" for name, t in report["tokens"].items()),
        highlight=False,
        soft_wrap=True,
    )
    if report["gaussians"]:
        table = Table(title="Gaussian fit (theta, phi in radians, the others normalised)")
        for heading in ("axis", "mu", "sigma", "sigma in use"):
            table.add_column(heading, justify="left" if heading == "axis" else "right")
        for axis, fitted in report["gaussians"].items():
            used = (
                ""
                if axis not in report["axes"]
                else f"{max(fitted['sigma'], report['min_sigma']):.4f}"
            )
            table.add_row(axis, f"{fitted['mu']:.4f}", f"{fitted['sigma']:.4f}", used)
        console.print(table)
    table = Table(
        title=f"Error of encoding and decoding (a token decodes to the {report['decoding']} of its "
        "bin)"
    )
    headings = ["dimension", "RMSE, normalised", "worst, normalised"]
    if given.statistics is not None:
        headings += ["RMSE, robot", "worst, robot", "unit"]
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("dimension", "unit") else "right")
    for name, error in report["reconstruction"].items():
        row = [name, f"{error['rmse']:.4f}", f"{error['max']:.4f}"]
        if given.statistics is not None:
            unit = error["unit"] if len(error["unit"]) < 5 else ""
            row += [f"{error['rmse_robot']:.4g}", f"{error['max_robot']:.4g}", unit]
        table.add_row(*row)
    console.print(table)
    if report["sampled"]:
        console.print(
            f"errors and tokens in use: of {report['num_measured']:,} actions drawn at random",
            highlight=False,
        )
    for what, place in (("grid", report["out"]), ("picture", report["plot"])):
        if place:
            console.print(f"{what} written to {place}", highlight=False, soft_wrap=True)
    if not report["out"]:
        console.print("not saved; give --out grid.json to keep it", highlight=False)


def plot(
    grid_file: Annotated[
        Path, typer.Argument(metavar="GRID", help="grid.json, or a checkpoint directory.")
    ],
    out: Annotated[Path, typer.Option(help="Picture to write (png, pdf or svg).")] = Path(
        "grid.png"
    ),
    actions: Annotated[
        str | None,
        typer.Option(help="Dataset directory, or .npy/.npz of NORMALISED actions, to show on it."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Card of the dataset; its card.yaml if not given.")
    ] = None,
    split: Split = "train",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was drawn as JSON.")] = False,
) -> None:
    """Draw distribution, fit, bins and their use per axis, and what encoding loses.

    Of more than 100,000 actions a random sample of so many is shown.

    Example: spatialvla-ft grids plot grid.json --actions data/my_robot/1.0.0 --out grid.png
    """
    from spatialvla_ft.actions.grid_io import load_grid
    from spatialvla_ft.data.stats.grid_actions import read_actions
    from spatialvla_ft.viz.grids import save_grid_plot

    with fail_with():
        grid = load_grid(grid_file)
        given = None if actions is None else read_actions(actions, card=card, split=split)
        title = f"Action grid {grid_file.name}" + (f" on {given.name}" if given else "")
        save_grid_plot(out, grid, None if given is None else given.sample, title=title)
    if as_json:
        count = 0 if given is None else len(given.sample)
        typer.echo(json.dumps({"plot": str(out), "bins": list(grid.bins), "num_actions": count}))
    else:
        typer.echo(f"picture written to {out}")


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
    as_json: AsJson = False,
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
