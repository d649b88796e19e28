"""`spatialvla-ft eval open-loop`: errors on recorded steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def open_loop(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or adapter folder.")],
    dataset: Annotated[
        str, typer.Argument(help="RLDS version directory, LeRobot folder, or an address.")
    ],
    base: Annotated[
        str | None, typer.Option(help="An adapter's base, if it is not where it was.")
    ] = None,
    card: Annotated[Path | None, typer.Option(help="Dataset card; default card.yaml.")] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    unnorm_key: Annotated[
        str | None, typer.Option(help="Statistics to decode with; default the dataset's own.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Steps to predict, evenly spaced.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Write the numbers here as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Predict the actions of recorded steps: L1 per dimension beside baselines, token accuracy.

    Example: spatialvla-ft eval open-loop runs/b/final datasets/robot_b_touch/1.0.0
    """
    from rich.console import Console
    from rich.table import Table

    from spatialvla_ft.cli.console import fail_with, no_bars_of_weights, watching

    with fail_with():
        from spatialvla_ft.evaluation.open_loop import open_recorded, run_open_loop
        from spatialvla_ft.policy.load import load_policy_model

        no_bars_of_weights()
        model, processor = load_policy_model(checkpoint, base=base)
        data = open_recorded(dataset, processor, card=card, split=split)
        with watching(quiet=as_json) as begin:
            result = run_open_loop(
                model,
                processor,
                data,
                unnorm_key=unnorm_key,
                frames=frames,
                on_frames=begin("steps", min(frames, len(data))),
            )
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
        return
    for words in result.lost:
        Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {words}", highlight=False)
    table = Table("mean |error|", *result.l1, title=f"{result.frames} steps of {result.dataset}")
    for i, (dimension, unit) in enumerate(zip(result.names, result.units, strict=True)):
        row = [f"{result.l1[policy][i]:.3g}" for policy in result.l1]
        table.add_row(f"{dimension}, {unit}" if len(unit) < 5 else dimension, *row)
    Console().print(table)
    shares = ", ".join(f"{k} {v:.1%}" for k, v in result.token_accuracy.items())
    Console().print(f"predicted tokens equal to the recorded ones: {shares}")
