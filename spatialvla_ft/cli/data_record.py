"""`spatialvla-ft data record`: demonstrations in simulation, written as RLDS."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatialvla_ft.cli.console import fail_with
from spatialvla_ft.cli.options import AsJson

if TYPE_CHECKING:
    from spatialvla_ft.sim.recorder import Tally


def record(
    out: Annotated[Path, typer.Option(help="Folder for the dataset: OUT/NAME/1.0.0.")],
    robot: Annotated[str, typer.Option(help="robot_a or robot_b.")] = "robot_a",
    task: Annotated[
        list[str] | None, typer.Option(help='Task, repeatable; "all" for the seven without a post.')
    ] = None,
    episodes: Annotated[int, typer.Option(help="Successful episodes to write.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the first episode; the next is +1.")] = 0,
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    camera_mode: Annotated[
        str, typer.Option(help="fixed, or random: a calibrated pose of its own per episode.")
    ] = "fixed",
    action_noise: Annotated[
        float,
        typer.Option(
            help="Noise on executed actions, a share of the largest step, with clean labels: "
            "about 0.3 for touch, 0.1 where a grasp needs aim."
        ),
    ] = 0.0,
    cameras: Annotated[str, typer.Option(help="Comma separated: front,wrist.")] = "front",
    distractors: Annotated[
        str,
        typer.Option(help="Blocks that the task does not name; 0,1,2: one of these by the seed."),
    ] = "1",
    expert: Annotated[
        str | None,
        typer.Option(
            help="How the expert of detour passes the post: left, right, or either by the seed."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Simulation processes; same data for any.")] = 1,
    name: Annotated[
        str | None, typer.Option(help="Dataset name; default ROBOT_TASK, or ROBOT_mixed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Record expert demonstrations in simulation as an RLDS dataset with a dataset card.

    Example: spatialvla-ft data record --robot robot_a --task touch --episodes 200 --out datasets
    """
    with fail_with():
        summary = _record(
            out=out,
            robot_name=robot,
            task_names=task or ["touch"],
            episodes=episodes,
            seed=seed,
            image_size=image_size,
            camera_mode=camera_mode,
            action_noise=action_noise,
            cameras=tuple(part.strip() for part in cameras.split(",") if part.strip()),
            distractors=distractors,
            expert=expert,
            workers=workers,
            name=name,
        )
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        typer.echo(
            f"wrote {summary['episodes']} episodes ({summary['steps']} steps) "
            f"to {summary['path']}; {summary['failed']} of {summary['attempted']} attempts failed "
            "and were left out"
        )


def _record(
    *,
    out: Path,
    robot_name: str,
    task_names: list[str],
    episodes: int,
    seed: int,
    image_size: int,
    camera_mode: str,
    action_noise: float,
    cameras: tuple[str, ...],
    distractors: str,
    expert: str | None,
    workers: int,
    name: str | None,
) -> dict[str, object]:
    """Check everything, then simulate and write; returns the summary."""
    if episodes < 1:
        raise ValueError(f"--episodes: got {episodes}, allowed are 1 or more")
    if seed < 0:
        raise ValueError(f"--seed: got {seed}, allowed are 0 or more")
    if workers < 1:
        raise ValueError(f"--workers: got {workers}, allowed are 1 or more")
    if action_noise < 0:
        raise ValueError(f"--action-noise: got {action_noise}, allowed are 0 or more")
    if not cameras or len(set(cameras)) < len(cameras):
        raise ValueError(f"--cameras: got {list(cameras)}, allowed are front, wrist, front,wrist")

    from spatialvla_ft.sim.layout import distractor_counts
    from spatialvla_ft.sim.robots import get_robot
    from spatialvla_ft.sim.tasks import PLAIN, check_way, get_task

    robot = get_robot(robot_name)
    tasks = [get_task(t) for t in (PLAIN if task_names == ["all"] else task_names)]
    way = check_way(expert, [task.name for task in tasks])
    name = name or f"{robot.name}_{tasks[0].name if len(tasks) == 1 else 'mixed'}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"--name: got {name!r}, allowed are lower-case letters, digits and _, a letter first"
        )
    target = out / name
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"--out: {target} exists and is not empty; remove it, or give another --out or --name"
        )

    from spatialvla_ft.sim.recorder import Plan, record_dataset

    plan = Plan(
        robot=robot.name,
        tasks=tuple(task.name for task in tasks),
        seed=seed,
        action_noise=action_noise,
        image_size=image_size,
        cameras=cameras,
        camera_mode=camera_mode,
        distractors=distractor_counts(distractors),
        way=way,
    )
    tally = _show(
        record_dataset(plan, episodes=episodes, out=out, name=name, workers=workers), episodes
    )
    return {
        "path": str(target / "1.0.0"),
        "name": name,
        "robot": robot.name,
        "tasks": list(plan.tasks),
        "episodes": tally.episodes,
        "steps": tally.steps,
        "failed": tally.failed,
        "attempted": tally.attempted,
    }


def _show(progress_of: Iterator[Tally], count: int) -> Tally:
    """Follow the recording with a progress bar on stderr; returns the final tally."""
    from spatialvla_ft.cli.console import watching
    from spatialvla_ft.sim.recorder import Tally

    tally = Tally()
    with watching() as begin:
        told = begin("episodes", count)
        for tally in progress_of:
            told(tally.episodes, f"{tally.steps} steps, {tally.failed} attempts failed")
    return tally
