"""`spatialvla-ft train`: run a recipe.

What a finished run says of itself: its losses, its warnings once more, where things lie.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatialvla_ft.cli.options import AsJson

if TYPE_CHECKING:
    from spatialvla_ft.training.preflight.report import Preflight
    from spatialvla_ft.training.run import Run

MANY = 12
"""Warnings that are repeated."""


def validation_losses(metrics: Path) -> dict[int, float]:
    """{step: validation loss} of a run, also of before it was continued."""
    if not metrics.is_file():
        return {}
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found = [(line["step"], line.get("validation/loss")) for line in lines]
    return {step: loss for step, loss in found if loss is not None}


def best_and_last(losses: dict[int, float]) -> dict[str, float]:
    """The lowest validation loss, the last one, and their steps; empty where there is none."""
    if not losses:
        return {}
    best, last = min(losses, key=lambda step: (losses[step], step)), max(losses)
    return {
        "best_validation_loss": losses[best],
        "best_step": best,
        "last_validation_loss": losses[last],
        "last_step": last,
    }


def summary(
    output: Path, result: Path, steps: int, kept: str, warnings: Sequence[str], dataset: str
) -> list[str]:
    """Lines for people.

    Args:
        output: folder of the run.
        result: folder of the trained model.
        steps: of the run.
        kept: "last" or "best", which weights the result holds.
        warnings: everything that was warned of.
        dataset: path of a dataset, for the next command.
    """
    lines = [f"trained {steps:,} steps; {result} holds the {kept} weights"]
    told = best_and_last(validation_losses(output / "metrics.jsonl"))
    if told:
        lines.append(
            f"validation loss: best {told['best_validation_loss']:.3f} at step "
            f"{told['best_step']:,}, last {told['last_validation_loss']:.3f} at step "
            f"{told['last_step']:,}"
        )
    lines += [f"warning: {text}" for text in warnings[-MANY:]]
    if len(warnings) > MANY:
        lines.append(f"and {len(warnings) - MANY} warnings before these")
    lines.append(f"checkpoints, metrics, recipe and pre-flight report: {output}")
    if (output / "tensorboard").is_dir():
        lines.append(f"curves: tensorboard --logdir {output / 'tensorboard'}")
    lines.append(f"next: spatialvla-ft eval open-loop {result} {dataset}")
    return lines


def train(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file, or a name that `spatialvla-ft recipes` lists.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value, as many as needed.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of resuming the output folder.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only the report before the first step; writes nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train what a recipe describes, and continue where it stopped if it ran before.

    SIGTERM and SIGUSR1 end it after the step in progress: it writes a checkpoint, and the exit code
    is 75. Exit code 1 is an error, whose message says how to go on.

    Before the first step it says what will be learnt and refuses what makes no sense; --check ends
    there.

    Example: spatialvla-ft train quickstart_base train.steps=200 output=runs/try
    """
    from spatialvla_ft.cli.console import fail_with, no_bars_of_weights, training_progress

    with fail_with():
        from spatialvla_ft.near import no_checkpoint
        from spatialvla_ft.training.recipe import RecipeError, load_recipe

        checked = load_recipe(recipe, overrides or [])
        said = no_checkpoint("model.base", checked.model.base)
        if said and not checked.output.exists():  # and so no earlier run to speak of
            raise RecipeError(said)  # before libraries are loaded
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

    from spatialvla_ft.cli.preflight_view import show_preflight
    from spatialvla_ft.memory.machine import planned_memory
    from spatialvla_ft.training.preflight.report import preflight

    report = preflight(run, memory=planned_memory(run, always=thorough))
    if not quiet:
        show_preflight(report, Console(stderr=not thorough, highlight=False), problems=thorough)
    return report
