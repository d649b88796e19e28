"""`spatialvla-ft eval sim`: success in simulation, with its interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def sim(
    robot: Annotated[str, typer.Option(help="robot_a or robot_b.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint or adapter folder, for --policy model.")
    ] = None,
    policy: Annotated[str, typer.Option(help="model, no-motion or mean-action.")] = "model",
    task: Annotated[list[str] | None, typer.Option(help="Task, repeatable.")] = None,
    episodes: Annotated[int, typer.Option(help="Episodes per task.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first episode.")] = 1_000_000,
    unnorm_key: Annotated[
        str | None, typer.Option(help="Dataset whose units the actions are in.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Demonstrations, for --policy mean-action.")
    ] = None,
    execute: Annotated[
        int | None, typer.Option(help="Actions executed per chunk; default all.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(help="Checkpoint of a depth estimator, in place of the model's.")
    ] = None,
    depth_resolution: Annotated[
        int | None, typer.Option(help="Side of the estimator's input; default as trained.")
    ] = None,
    depth_every: Annotated[
        int, typer.Option(help="Estimate depth at every n-th picture of an episode.")
    ] = 1,
    name: Annotated[str | None, typer.Option(help="Name of the policy in reports.")] = None,
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    camera_mode: Annotated[str, typer.Option(help="fixed or random.")] = "random",
    distractors: Annotated[int, typer.Option(help="Blocks that the task does not name.")] = 0,
    workers: Annotated[int, typer.Option(help="Simulation processes.")] = 1,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the results, every episode, here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Let a policy act in simulation and count successes, with Wilson 95 % intervals.

    Example: spatialvla-ft eval sim --checkpoint runs/b/final --robot robot_b --task touch
    """
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from spatialvla_ft.cli.console import fail_with

    with fail_with(ValueError, OSError):
        if episodes < 1:
            raise ValueError(f"--episodes is {episodes}; it must be at least 1")
        if depth is None and (depth_resolution is not None or depth_every != 1):
            raise ValueError("--depth-resolution and --depth-every need --depth, an estimator")
        if depth is not None and policy != "model":
            raise ValueError(f"--depth is for --policy model; {policy} does not look")
        acting = _policy(policy, checkpoint, dataset, unnorm_key, execute, name, threads)
        if depth is not None:
            acting = _with_depth(acting, depth, depth_resolution, depth_every)
        from spatialvla_ft.evaluation.closed_loop import run_closed_loop

        results = []
        with Progress(console=Console(stderr=True), disable=as_json) as progress:
            for one in task or ["touch"]:
                bar = progress.add_task(f"{robot} {one}", total=episodes)
                results.append(
                    run_closed_loop(
                        acting,
                        robot,
                        one,
                        range(seed, seed + episodes),
                        workers=workers,
                        parallel=min(episodes, 25),
                        image_size=image_size,
                        camera_mode=camera_mode,
                        distractors=distractors,
                        on_episodes=lambda n, bar=bar: progress.update(bar, completed=n),
                    )
                )
        content = [result.to_dict() for result in results]
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(content, indent=1) + "\n")
    if as_json:
        short = [{k: v for k, v in c.items() if k not in ("results", "traces")} for c in content]
        typer.echo(json.dumps(short))
        return
    table = Table("task", "policy", "success", "95 % interval", "wrong object", "mean steps")
    for result in results:
        low, high = result.interval
        table.add_row(
            result.task,
            result.policy,
            f"{result.successes}/{result.episodes} = {result.rate:.0%}",
            f"{low:.0%} .. {high:.0%}",
            f"{result.wrong_objects}/{result.episodes}",
            f"{result.mean_steps:.1f}",
        )
    Console().print(table)


def _policy(policy, checkpoint, dataset, unnorm_key, execute, name, threads):
    if policy not in ("model", "no-motion", "mean-action"):
        raise ValueError(f"--policy is {policy!r}; use model, no-motion or mean-action")
    if policy == "model" and checkpoint is None:
        raise ValueError("--policy model needs --checkpoint, a checkpoint or adapter folder")
    if policy == "mean-action" and dataset is None:
        raise ValueError("--policy mean-action needs --dataset, the demonstrations to average")
    from spatialvla_ft.evaluation import policies

    if policy == "no-motion":
        return policies.NoMotion()
    if policy == "mean-action":
        from spatialvla_ft.data import open_dataset
        from spatialvla_ft.data.statistics import dataset_statistics

        return policies.MeanAction(dataset_statistics(open_dataset(dataset, card=None)).mean)
    import torch

    from spatialvla_ft.models.lora import load_policy_model

    if threads is not None:
        torch.set_num_threads(threads)
    if not checkpoint.is_dir():
        raise ValueError(f"--checkpoint {checkpoint} is no folder")
    model, processor = load_policy_model(checkpoint)
    return policies.ModelPolicy(
        model, processor, unnorm_key=unnorm_key, execute=execute, name=name or checkpoint.name
    )


def _with_depth(policy, checkpoint, resolution, every):
    from spatialvla_ft.depth.every_nth import EveryNth
    from spatialvla_ft.depth.load import DepthSpec, load_depth_estimator

    device = str(next(policy.model.parameters()).device)
    estimator = load_depth_estimator(DepthSpec(checkpoint, resolution, device=device))
    policy.use_depth_of(EveryNth(estimator, every))
    return policy
