"""`spatialvla-ft train`: run a recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spatialvla_ft.training.preflight import Preflight
    from spatialvla_ft.training.run import Run


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, e.g. recipes/tabletop_full.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value, as many as needed.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of resuming the output folder.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only the report before the first step; writes nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Train what a recipe describes, and continue where it stopped if it ran before.

    SIGTERM and SIGUSR1 end it after the step in progress: it writes a checkpoint, and the exit code
    is 75. Exit code 1 is an error, whose message says how to go on.

    Before the first step it says what will be learnt and refuses what makes no sense; --check ends
    there.

    Example: spatialvla-ft train recipes/quickstart_base.yaml train.steps=200 output=runs/try
    """
    from spatialvla_ft.cli.console import fail_with, no_bars_of_weights, training_progress
    from spatialvla_ft.cli.train_summary import best_and_last, summary, validation_losses

    with fail_with():
        from spatialvla_ft.training.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from spatialvla_ft.training.global_batch import is_first_process
        from spatialvla_ft.training.output import finished, last_metrics, refuse_other_run

        result = None if fresh or check else finished(checked)
        already, warned = result is not None, []
        if already:
            last = last_metrics(Path(checked.output))
        else:
            if not fresh and not check:
                refuse_other_run(checked)  # before a base is loaded, which takes minutes
            from spatialvla_ft.training.build import build
            from spatialvla_ft.training.distributed import main_process_first
            from spatialvla_ft.training.loop import train as run_training
            from spatialvla_ft.training.stopping import EXIT_CODE, StoppedError

            no_bars_of_weights()
            first = is_first_process()
            quiet = as_json or not first
            with main_process_first(checked.train):
                run = build(checked, fresh=fresh)
            report = _report(run, quiet=quiet, thorough=check)
            if check:
                if as_json and first:
                    typer.echo(json.dumps(report.to_dict(), default=str))
                elif first and not report.problems:
                    typer.echo("This run makes sense; leave --check out to start it.")
                raise typer.Exit(1 if report.problems else 0)
            report.refuse()
            try:
                with training_progress(run, quiet=quiet) as on_log:
                    result = run_training(
                        run,
                        resume=not fresh,
                        on_log=on_log,
                        on_depth=on_log.depth,
                        report=report,
                    )
            except StoppedError as stop:
                typer.echo(str(stop), err=True)
                raise typer.Exit(EXIT_CODE) from stop
            last = on_log.last
            warned = list(dict.fromkeys([*report.warnings, *on_log.warnings]))
    output = Path(checked.output)
    if not is_first_process():
        return
    if as_json:
        told = {"result": str(result), "steps": checked.train.steps, "finished_before": already}
        losses = best_and_last(validation_losses(output / "metrics.jsonl"))
        typer.echo(json.dumps({**told, **last, **losses, "warnings": warned}))
        return
    if already:
        typer.echo(
            f"{checked.output} is finished: all {checked.train.steps} steps were trained. To train "
            f"further, start a run with model.base={result}; to train it anew, add --fresh",
            err=True,
        )
    elif os.environ.get("RANK", "0") == "0":
        dataset = "DATASET" if checked.data.datasets is None else str(checked.data.datasets[0].path)
        kept = checked.train.result
        for line in summary(output, result, checked.train.steps, kept, warned, dataset):
            typer.echo(line, err=True)
    typer.echo(f"{result}  (metrics: {output / 'metrics.jsonl'})")


def _report(run: Run, *, quiet: bool, thorough: bool) -> Preflight:
    """The report before the first step, shown by the main process unless quiet."""
    from rich.console import Console

    from spatialvla_ft.cli.planned_memory import planned_memory
    from spatialvla_ft.cli.preflight_view import show_preflight
    from spatialvla_ft.training.preflight import preflight

    report = preflight(run, memory=planned_memory(run, always=thorough))
    if not quiet:
        show_preflight(report, Console(stderr=not thorough, highlight=False), problems=thorough)
    return report
