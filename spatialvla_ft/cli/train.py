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

    Example: spatialvla-ft train recipes/quickstart_base.yaml train.steps=200 output=runs/try
    """
    from spatialvla_ft.cli.console import fail_with, training_progress

    with fail_with(ValueError, FloatingPointError, OSError):
        from spatialvla_ft.training.build import build
        from spatialvla_ft.training.loop import train as run_training
        from spatialvla_ft.training.recipe import load_recipe

        checked = load_recipe(recipe, overrides or [])
        if fresh:
            import shutil

            shutil.rmtree(checked.output, ignore_errors=True)
        run = build(checked)
        with training_progress(run, quiet=as_json) as on_log:
            result = run_training(run, on_log=on_log)
        last = on_log.last
    if as_json:
        typer.echo(json.dumps({"result": str(result), "steps": checked.train.steps, **last}))
    else:
        typer.echo(f"{result}  (metrics: {Path(checked.output) / 'metrics.jsonl'})")
