"""`spatialvla-ft eval report`: one page about a run of the quickstart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Output folder of the quickstart.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for index.html; RUNS/report if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say the outcome as JSON.")] = False,
) -> None:
    """Write a self-contained page: success with intervals, episodes, point clouds, curves.

    Example: spatialvla-ft eval report runs/quickstart --out runs/quickstart/report
    """
    from rich.console import Console

    from spatialvla_ft.cli.console import fail_with

    console = Console(stderr=True)
    with fail_with():
        from spatialvla_ft.quickstart.report import write_page
        from spatialvla_ft.quickstart.run_files import judge, read_run

        run = read_run(runs)
        with console.status("report") as status:
            path = write_page(
                run,
                out or runs / "report",
                on_section=lambda name: status.update(f"report: {name}"),
            )
        verdict = judge(run.outcomes)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "report": str(path),
                    "gate_passed": verdict.passed,
                    "gate_reasons": list(verdict.reasons),
                    "missing": list(run.missing),
                }
            )
        )
        return
    typer.echo(f"report written to {path}")
    typer.echo("\n".join(verdict.sentences))
    if run.missing:
        typer.echo(f"missing from the run, and named in the report: {', '.join(run.missing)}")
