"""`spatialvla-ft check-robot`: what a policy means by its numbers, before it moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatialvla_ft.cli.options import AsJson, Base, CardFile, Split, UnnormKey

if TYPE_CHECKING:
    from spatialvla_ft.evaluation.robot_check import RobotCheck


def check_robot(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or adapter folder.")],
    dataset: Annotated[
        str,
        typer.Argument(help="Recorded steps of the robot: RLDS or LeRobot folder, or an address."),
    ],
    base: Base = None,
    card: CardFile = None,
    split: Split = "train",
    unnorm_key: UnnormKey = None,
    steps: Annotated[int, typer.Option(help="Steps to predict, evenly spaced.", min=3)] = 128,
    camera: Annotated[
        str | None, typer.Option(help="Slot to draw on; default the policy's first.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page of HTML with pictures.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lay a policy's motions beside recorded ones: is each axis, unit and gripper what it seems?

    Says which axis looks flipped, swapped or scaled. The page shows both motions as arrows in the
    camera's picture, for a person to nod at before the robot moves. Exit code 0 whatever it finds.

    Example: spatialvla-ft check-robot exports/my_robot datasets/my_robot/1.0.0 --out check.html
    """
    from rich.console import Console

    from spatialvla_ft.cli.console import fail_with, no_bars_of_weights, watching

    with fail_with():
        from spatialvla_ft.evaluation.open_loop import open_recorded
        from spatialvla_ft.evaluation.robot_check import check_dataset, predict_recorded
        from spatialvla_ft.policy.load import load_policy_model

        no_bars_of_weights()
        model, processor = load_policy_model(checkpoint, base=base)
        data = open_recorded(dataset, processor, card=card, split=split)
        shown = processor.layout.cameras[0] if camera is None else camera
        if shown not in processor.layout.cameras:
            raise ValueError(
                f"--camera {camera} is not one that the policy looks through: "
                f"{list(processor.layout.cameras)}"
            )
        with watching(quiet=as_json) as begin:
            predicted = predict_recorded(
                model,
                processor,
                data,
                unnorm_key=unnorm_key,
                steps=steps,
                on_steps=begin("steps", min(steps, len(data))),
            )
        check = check_dataset(data, predicted, processor)
        if out is not None:
            from spatialvla_ft.viz.robot_check import steps_to_draw, write_robot_check

            drawn = steps_to_draw(data, predicted, camera=shown)
            sure = _sure(model, processor, drawn, predicted.unnorm_key, shown)
            write_robot_check(check, drawn, predicted, out, sure)
    if as_json:
        typer.echo(json.dumps(check.to_dict()))
        return
    console = Console(highlight=False)
    _show(check, console)
    if out is not None:
        console.print(f"page: {out}", soft_wrap=True)


def _sure(model, processor, drawn, unnorm_key, camera):
    """The first drawn step with its heatmap; None where there is no such thing."""
    from spatialvla_ft.policy.prediction import predict_chunk
    from spatialvla_ft.viz.prediction import Scene, plot_prediction

    head = model.action_head
    if head is None or not head.has_maps or not drawn or drawn[0].image is None:
        return None
    sample = drawn[0].sample
    chunk = predict_chunk(
        model, processor, sample.observations, sample.instruction, unnorm_key=unnorm_key
    )
    scene = Scene(
        drawn[0].image,
        None if sample.depth is None else sample.depth.get(camera),
        sample.intrinsics[camera],
        sample.extrinsics.get(camera),
        drawn[0].tool,
    )
    return plot_prediction(scene, chunk, sample.instruction)


def _show(check: RobotCheck, console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from spatialvla_ft.viz.robot_check import HEAD, axis_rows, facts

    table = Table(title=f"{check.steps} steps of {check.dataset}", title_justify="left",
                  box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))  # fmt: skip
    for i, heading in enumerate(HEAD):
        table.add_column(heading, justify="left" if i in (0, 5, 6) else "right", no_wrap=True)
    for row in axis_rows(check.axes):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for line in facts(check):
        console.print(Text(line), soft_wrap=True)
    for text in check.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)
    untold = f", but {', '.join(check.untold)} cannot be told" if check.untold else ""
    told = {
        "fine": Text(f"fine: nothing looks wrong{untold}; see the page, then move slowly", "green"),
        "look": Text("look before it moves: what looks wrong stands above", "bold red"),
        "unclear": Text(
            "unclear: the policy follows these motions too little to tell its axes", "yellow"
        ),
    }
    console.print(told[check.verdict], soft_wrap=True)
