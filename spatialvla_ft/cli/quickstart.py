"""`spatialvla-ft quickstart`: the main job, from demonstrations to report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spatialvla_ft.quickstart.stages import Stage


def quickstart(
    runs: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/quickstart"),
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("quickstart_report"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished stages of an earlier run.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all training.", min=0)] = 0,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit code 1 where the verdict is not as hoped for.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say the outcome as JSON.")] = False,
) -> None:
    """Record two robots, train a small base on A, adapt it to B, evaluate, export, report.

    Exit code 0 when every stage ran and the report was written; what the success rates say stands
    in the terminal and on the page.

    Example: spatialvla-ft quickstart
    """
    from rich.console import Console

    from spatialvla_ft.cli.console import fail_with
    from spatialvla_ft.quickstart.job import run_quickstart, summary
    from spatialvla_ft.quickstart.report import write_page
    from spatialvla_ft.quickstart.run_files import judge, reported

    console = Console(stderr=True, highlight=False)
    began = time.perf_counter()

    def tell(stage: Stage, seconds: float | None) -> None:
        clock = f"[dim]{time.perf_counter() - began:5.0f} s[/]"
        if seconds is None:
            console.print(
                f"{clock}  {stage.title}\n         [dim]{stage.command}[/]", soft_wrap=True
            )
        else:
            console.print(f"{clock}  [green]done[/] {stage.title} [dim]({seconds:.0f} s)[/]")

    with fail_with():
        done = run_quickstart(runs, seed=seed, resume=resume, on_change=tell)
        with console.status("writing the report"):
            page = write_page(done, out)
    verdict, seconds = judge(done.outcomes), time.perf_counter() - began
    if as_json:
        said = {**reported(page, done, verdict), "seconds": round(seconds, 1)}
        typer.echo(json.dumps(said))
    else:
        console.print(f"{summary(runs, seed)}\n")
        for sentence in verdict.sentences:
            console.print(sentence, soft_wrap=True)
        console.print(f"report: {out / 'index.html'}   ({seconds / 60:.1f} min)")
    if gate and not verdict.passed:
        raise typer.Exit(1)
