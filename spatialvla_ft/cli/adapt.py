"""`spatialvla-ft adapt`: from demonstrations of a new robot to an adapted policy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialvla_ft.cli.options import AsJson

if TYPE_CHECKING:
    from rich.console import Console

    from spatialvla_ft.adapting.job import Job
    from spatialvla_ft.adapting.running import Step
    from spatialvla_ft.training.preflight.report import Preflight
    from spatialvla_ft.training.run import Run


def adapt(
    dataset: Annotated[
        str, typer.Argument(help="RLDS version directory, or LeRobot folder (v2.1, v3.0).")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value of the recipe, as many as needed.")
    ] = None,
    base: Annotated[
        str, typer.Option(help="Checkpoint to start from: a folder, or OWNER/NAME on the Hub.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Where everything goes; runs/adapt_DATASET if not given.")
    ] = None,
    recipe: Annotated[
        Path,
        typer.Option(help="To start from: a file, or a name that `spatialvla-ft recipes` lists."),
    ] = Path("adapt_lora"),
    head: Annotated[
        str | None,
        typer.Option(
            help="Action head: grid_tokens, voxel_heatmap, l1, linear_bins or flow; the base's if "
            "not given."
        ),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Dataset card; DATASET/card.yaml if not given.")
    ] = None,
    accept_draft: Annotated[
        bool, typer.Option("--accept-draft", help="Without a card: trust the drafted one.")
    ] = False,
    accept_errors: Annotated[
        bool, typer.Option("--accept-errors", help="Go on though the inspection finds errors.")
    ] = False,
    stop_after: Annotated[
        str | None,
        typer.Option(
            help="Stop after this stage: index, inspect, statistics, grid, plan, train, evaluate."
        ),
    ] = None,
    export: Annotated[
        bool, typer.Option("--export", help="At the end, write a merged checkpoint to OUT/export.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a checkpoint to a new robot: look at its data, fit its grid, train, report.

    Stages: index, inspect, statistics, grid, plan, train, evaluate, export. What is done and still
    holds is skipped when the command is given again; what changed is done again, with all that
    depends on it. OUT/recipe.yaml shows every default. Exit code 75: stopped by a signal, give the
    command again.

    Example: spatialvla-ft adapt datasets/my_robot/1.0.0 --base CHECKPOINT train.steps=2000
    """
    from rich.console import Console

    from spatialvla_ft.adapting.job import Job
    from spatialvla_ft.adapting.ledger import NeedsPersonError
    from spatialvla_ft.adapting.running import run_stages
    from spatialvla_ft.cli.console import fail_with

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    began = time.perf_counter()
    view = _View(console, quiet=as_json)
    with fail_with(NeedsPersonError):
        if not base:
            raise ValueError(
                "give the checkpoint to start from: --base FOLDER, or --base OWNER/NAME on the Hub"
            )
        job = Job(
            dataset=dataset,
            base=base,
            out=out or Path("runs") / f"adapt_{_name(Path(dataset))}",
            recipe_file=recipe,
            overrides=[*(overrides or []), *([f"model.head.kind={head}"] if head else [])],
            card_file=card,
            accept_draft=accept_draft,
            accept_errors=accept_errors,
            export=export,
            view=view,
        )
        steps = _run(job, run_stages, stop_after, view)
        report = _report(job, steps, time.perf_counter() - began)
        (job.out / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _summary(report, console)


def _run(job: Job, run_stages: Any, stop_after: str | None, view: _View) -> list[Step]:
    """The stages; a signal ends with exit code 75."""
    import sys

    try:
        return run_stages(
            job,
            stop_after=stop_after,
            on_start=view.start,
            on_warning=view.warn,
            on_end=view.end,
        )
    except Exception as error:
        stopping = sys.modules.get("spatialvla_ft.training.stopping")
        if stopping is None or not isinstance(error, stopping.StoppedError):
            raise
        typer.echo(str(error), err=True)
        raise typer.Exit(stopping.EXIT_CODE) from error


def _name(dataset: Path) -> str:
    """my_robot of datasets/my_robot/1.0.0, or of datasets/my_robot."""
    whole = dataset.resolve()
    versioned = whole.name.replace(".", "").isdigit()
    return whole.parent.name if versioned else whole.name


class _View:
    """Tells a person what happens."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.console, self.quiet = console, quiet

    def preflight(self, report: Preflight) -> None:
        """The report before the first step."""
        from spatialvla_ft.cli.preflight_view import show_preflight

        if not self.quiet:
            show_preflight(report, self.console, problems=False)

    @contextmanager
    def training(self, run: Run) -> Iterator[Any]:
        """A bar of the steps, and one of the depth before them."""
        from spatialvla_ft.cli.console import training_progress

        with training_progress(run, quiet=self.quiet) as on_log:
            yield on_log, on_log.depth

    def watching(self) -> AbstractContextManager[Any]:
        """A bar of some other work."""
        from spatialvla_ft.cli.console import watching

        return watching(quiet=self.quiet)

    def start(self, stage: Any, why: str) -> None:
        """A stage has work to do."""
        from rich.text import Text

        from spatialvla_ft.cli.console import no_bars_of_weights

        no_bars_of_weights()
        if not self.quiet:
            again = "" if why == "not done yet" else f" ({why})"
            self.console.print(Text(f"{stage.name:<11}", "bold"), Text(f"{stage.title}{again}"))

    def warn(self, text: str) -> None:
        """Something to look at."""
        from rich.text import Text

        if not self.quiet:
            self.console.print(" " * 11, Text("warning:", "yellow"), Text(text))

    def end(self, stage: Any, step: Step) -> None:
        """A stage is done, or was before."""
        from rich.text import Text

        if self.quiet:
            return
        if step.why is None:
            took = f"done before, in {step.record.seconds:.0f} s; nothing has changed"
            self.console.print(Text(f"{stage.name:<11}", "bold"), Text(took, "dim"))
            return
        for line in step.lines:
            self.console.print(" " * 11, Text(line))


def _report(job: Job, steps: list[Step], seconds: float) -> dict[str, Any]:
    """Everything that was done, as JSON can hold it."""
    records = {step.record.stage: step.record for step in steps}
    evaluation = records.get("evaluate")
    return {
        "dataset": job.dataset,
        "base": job.base,
        "out": str(job.out),
        "stages": {
            step.record.stage: {
                "state": "kept" if step.why is None else "done",
                "why": step.why,
                "seconds": step.record.seconds,
                "files": step.record.files,
            }
            for step in steps
        },
        "open_loop": None if evaluation is None else evaluation.result,
        "warnings": [text for record in records.values() for text in record.warnings],
        "next": _next(job, set(records)),
        "seconds": round(seconds, 1),
    }


def _next(job: Job, done: set[str]) -> list[str]:
    """Commands that would follow."""
    card = job.recipe.data.datasets[0].card
    data = f"{job.dataset}{'' if card is None else f' --card {card}'}"
    if "export" in done:
        out = job.out / "export"
        return [
            f"spatialvla-ft export --verify {out}",
            f"spatialvla-ft push {out} --repo OWNER/NAME --dry-run",
        ]
    if "evaluate" in done:
        return [
            f"spatialvla-ft eval open-loop {job.final} OTHER_DATASET",
            f"spatialvla-ft export {job.final} --out {job.out / 'export'} --dataset {data}",
        ]
    if "plan" in done:
        return [f"spatialvla-ft train {job.out / 'recipe.yaml'}", "the same command again"]
    return ["the same command without --stop-after"]


def _summary(report: dict[str, Any], console: Console) -> None:
    """The end: figures, warnings once more, what comes next."""
    from rich.table import Table
    from rich.text import Text

    result = report["open_loop"]
    if result and result["l1"]:
        table = Table(title=f"Mean |error| on {result['frames']} held-out steps of "
                      f"{result['dataset']}, open loop", title_justify="left")  # fmt: skip
        table.add_column("dimension")
        for name in result["l1"]:
            table.add_column(name, justify="right")
        for i, (dimension, unit) in enumerate(zip(result["names"], result["units"], strict=True)):
            label = f"{dimension}, {unit}" if len(unit) < 5 else dimension
            table.add_row(label, *(f"{values[i]:.3g}" for values in result["l1"].values()))
        console.print(table)
    count = len(report["warnings"])
    if count:
        console.print(Text(f"{count} warning(s), also in {report['out']}/summary.json:", "yellow"))
        for text in report["warnings"]:
            console.print(Text(f"- {text}"))
    console.print(Text("next:", "bold"))
    for command in report["next"]:
        console.print(Text(f"  {command}"))
