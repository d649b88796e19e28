"""`spatialvla-ft bench gpu`, spoken: what runs, what became of it, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from spatialvla_ft.bench.gpu import Outcome, Part

OUT = Path("runs/gpu/gpu.json")


def measure_gpu(out: Path, *, size: str, device: str, rounds: int, as_json: bool) -> None:
    """Run all parts and show them; exit code 1 if one of them has no figures to show.

    Without a GPU that is said in a sentence, and is no failure.
    """
    from rich.console import Console

    from spatialvla_ft.bench.gpu import bench_gpu

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def start(part: Part, limit: float) -> None:
        console.print(f"{part.name} [dim](at most {limit:.0f} s)[/]")

    def end(outcome: Outcome) -> None:
        colour = "green" if outcome.state == "done" else "red"
        words = f": {outcome.why}" if outcome.why else ""
        console.print(f"  [{colour}]{outcome.state}[/] after {outcome.seconds:.0f} s{words}")

    report = bench_gpu(out, size=size, device=device, rounds=rounds, on_start=start, on_end=end)
    if as_json:
        typer.echo(json.dumps(report))
    if not report["parts"]:
        console.print(f"there is no GPU, so nothing was measured: {report['machine']['why']}")
        return
    page = out.with_suffix(".md")
    if not as_json:
        typer.echo(page.read_text(encoding="utf-8"))
    console.print(f"{out}, {page}, {out.with_suffix('.log')}")
    if any(part["state"] != "done" for part in report["parts"]):
        raise typer.Exit(1)
