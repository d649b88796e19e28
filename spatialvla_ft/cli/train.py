"""`spatialvla-ft train`: run a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, e.g. recipes/tabletop_full.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value, as many as needed.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of resuming the output folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Train what a recipe describes, and continue where it stopped if it ran before.

    SIGTERM and SIGUSR1 end it after the step in progress: it writes a checkpoint, and the exit code
    is 75. Exit code 1 is an error, whose message says how to go on.

    Example: spatialvla-ft train recipes/quickstart_base.yaml train.steps=200 output=runs/try
    """
    from spatialvla_ft.cli.console import fail_with, training_progress

    with fail_with(ValueError, FloatingPointError, OSError):
        from spatialvla_ft.training.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        from spatialvla_ft.training.output import finished, last_metrics

        result = None if fresh else finished(checked)
        already = result is not None
        if already:
            last = last_metrics(Path(checked.output))
        else:
            from spatialvla_ft.training.build import build
            from spatialvla_ft.training.loop import train as run_training
            from spatialvla_ft.training.stopping import EXIT_CODE, StoppedError

            run = build(checked)
            try:
                with training_progress(run, quiet=as_json) as on_log:
                    result = run_training(run, resume=not fresh, on_log=on_log)
            except StoppedError as stop:
                typer.echo(str(stop), err=True)
                raise typer.Exit(EXIT_CODE) from stop
            last = on_log.last
    if as_json:
        told = {"result": str(result), "steps": checked.train.steps, "finished_before": already}
        typer.echo(json.dumps({**told, **last}))
        return
    if already:
        typer.echo(
            f"{checked.output} is finished: all {checked.train.steps} steps were trained. To train "
            f"further, start a run with model.base={result}; to train it anew, add --fresh",
            err=True,
        )
    typer.echo(f"{result}  (metrics: {Path(checked.output) / 'metrics.jsonl'})")
