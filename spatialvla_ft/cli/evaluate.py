"""`spatialvla-ft eval sim`, `open-loop` and `report`: success in simulation, errors, a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from spatialvla_ft.cli.options import AsJson, Base, CardFile, Split, UnnormKey
from spatialvla_ft.near import near_path


def sim(
    robot: Annotated[
        str | None, typer.Option(help="robot_a or robot_b; default that of the training data.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint or adapter folder, for --policy model.")
    ] = None,
    base: Base = None,
    policy: Annotated[str, typer.Option(help="model, no-motion or mean-action.")] = "model",
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task, repeatable; default those of the training data, or touch."),
    ] = None,
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
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side; default as the training data, or 64.")
    ] = None,
    camera_mode: Annotated[
        str | None,
        typer.Option(help="fixed or random; default as the training data, or random."),
    ] = None,
    distractors: Annotated[
        str | None,
        typer.Option(
            help="Blocks that the task does not name; a list takes turns: 0,1,1,2,2. Default as "
            "the training data, or 0."
        ),
    ] = None,
    swap_test: Annotated[
        bool, typer.Option("--swap-test", help="Then run the same scenes with the other word.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Simulation processes.")] = 1,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the results, every episode, here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a policy act in simulation and count successes, with Wilson 95 % intervals.

    Robot, tasks, camera, distractors and size of the pictures are those that the policy's training
    data was recorded with, as far as no option says otherwise; the first lines tell.

    The swap test runs the scenes that have a distractor once more, and the instruction names that
    one: the words are followed where each of both led to the block that it names.

    Example: spatialvla-ft eval sim --checkpoint runs/b/final --robot robot_b --task touch
    """
    from rich.console import Console
    from rich.text import Text

    from spatialvla_ft.cli.console import fail_with, watching
    from spatialvla_ft.sim.layout import distractor_counts

    with fail_with():
        if episodes < 1:
            raise ValueError(f"--episodes is {episodes}; it must be at least 1")
        given = {
            "robot": robot,
            "tasks": task or None,
            "image_size": image_size,
            "camera_mode": camera_mode,
            "distractors": None if distractors is None else distractor_counts(distractors),
        }
        if depth is None and (depth_resolution is not None or depth_every != 1):
            raise ValueError("--depth-resolution and --depth-every need --depth, an estimator")
        if depth is not None and policy != "model":
            raise ValueError(f"--depth is for --policy model; {policy} does not look")
        from spatialvla_ft.evaluation.closed_loop import run_closed_loop, scenes_to_swap

        seeds = range(seed, seed + episodes)
        under = _conditions(given, seeds, checkpoint, dataset, unnorm_key)
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        for line in under.lines:
            console.print(Text(line))
        for line in under.warnings:
            console.print(Text.assemble(("warning: ", "yellow"), line))
        counts = under.distractors
        totals = {
            one: episodes + (len(scenes_to_swap(one, seeds, counts)) if swap_test else 0)
            for one in under.tasks
        }
        acting = _policy(policy, checkpoint, base, dataset, unnorm_key, execute, name, threads)
        if depth is not None:
            acting = _with_depth(acting, depth, depth_resolution, depth_every)
        results = []
        with watching(quiet=as_json) as begin:
            for one, total in totals.items():
                results.append(
                    run_closed_loop(
                        acting,
                        under.robot,
                        one,
                        seeds,
                        workers=workers,
                        parallel=min(episodes, 25),
                        image_size=under.image_size,
                        camera_mode=under.camera_mode,
                        distractors=counts,
                        swap=swap_test,
                        on_episodes=begin(f"{under.robot} {one}", total),
                    )
                )
        content = [{**result.to_dict(), "conditions": under.to_dict()} for result in results]
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(content, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps([_without_episodes(entry) for entry in content]))
        return
    console = Console()
    console.print(_outcomes(results))
    if swap_test:
        console.print(_swaps(results), _CHANCE, sep="\n")


def _conditions(given, seeds, checkpoint, dataset, unnorm_key):
    """What to evaluate under: as given, else as the demonstrations behind the policy were made."""
    from spatialvla_ft.evaluation.conditions import conditions_of, recorded_of_checkpoint

    if checkpoint is None and dataset is not None:
        from spatialvla_ft.data import open_dataset

        opened = open_dataset(dataset, card=None)
        known = {} if opened.card.recorded is None else {opened.name: opened.card.recorded}
        return conditions_of(given, known, seeds, whose=opened.name)
    known = {} if checkpoint is None else recorded_of_checkpoint(checkpoint)
    if unnorm_key in known:
        known = {unnorm_key: known[unnorm_key]}
    return conditions_of(given, known, seeds)


_CHANCE = (
    "followed: both words led to the block that they name. By chance: one of the blocks, picked "
    "anew each time; a policy that does not read the words follows in none."
)


def _without_episodes(value):
    if not isinstance(value, dict):
        return value
    listed = ("results", "traces")
    return {name: _without_episodes(one) for name, one in value.items() if name not in listed}


def _outcomes(results):
    from rich.table import Table

    from spatialvla_ft.sim.tasks import get_task

    posts = any(get_task(result.task).post for result in results)
    table = Table("task", "policy", "solved", "95 %", "wrong object", "95 %", "mean steps")
    if posts:
        table.add_column("hit the post", justify="right")
    for result in results:
        table.add_row(
            result.task,
            result.policy,
            *_cells(result.solved),
            *_cells(result.wrong),
            f"{result.mean_steps:.1f}",
            *([str(result.collisions)] if posts else []),
        )
    return table


def _swaps(results):
    from rich.table import Table

    table = Table(
        *("task", "policy", "solved", "wrong object", "followed", "by chance"),
        title="the same scenes with the other word, and 95 % intervals",
    )
    for result in results:
        swap = result.swap
        table.add_row(
            result.task,
            result.policy,
            *("\n".join(_cells(share)) for share in (swap.solved, swap.wrong, swap.follows)),
            f"{swap.chance:.0%}",
        )
    return table


def _cells(share) -> tuple[str, str]:
    low, high = share.interval
    return f"{share.count}/{share.trials} = {share.rate:.0%}", f"{low:.0%} .. {high:.0%}"


def _policy(policy, checkpoint, base, dataset, unnorm_key, execute, name, threads):
    if policy not in ("model", "no-motion", "mean-action"):
        raise ValueError(f"--policy is {policy!r}; use model, no-motion or mean-action")
    if policy == "model" and checkpoint is None:
        raise ValueError("--policy model needs --checkpoint, a checkpoint or adapter folder")
    if policy == "mean-action" and dataset is None:
        raise ValueError("--policy mean-action needs --dataset, the demonstrations to average")
    from spatialvla_ft.policy import policies

    if policy == "no-motion":
        return policies.NoMotion()
    if policy == "mean-action":
        from spatialvla_ft.data import open_dataset
        from spatialvla_ft.data.stats.statistics import dataset_statistics

        return policies.MeanAction(dataset_statistics(open_dataset(dataset, card=None)).mean)
    import torch

    from spatialvla_ft.cli.console import no_bars_of_weights
    from spatialvla_ft.policy.load import load_policy_model

    if threads is not None:
        torch.set_num_threads(threads)
    if not checkpoint.is_dir():
        raise ValueError(
            f"--checkpoint {checkpoint} is no folder; give a checkpoint or adapter folder"
            + near_path(checkpoint)
        )
    no_bars_of_weights()
    model, processor = load_policy_model(checkpoint, base=base)
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


def open_loop(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or adapter folder.")],
    dataset: Annotated[
        str, typer.Argument(help="RLDS version directory, LeRobot folder, or an address.")
    ],
    base: Base = None,
    card: CardFile = None,
    split: Split = "train",
    unnorm_key: UnnormKey = None,
    frames: Annotated[int, typer.Option(help="Steps to predict, evenly spaced.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Write the numbers here as JSON.")] = None,
    as_json: AsJson = False,
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
        from spatialvla_ft.quickstart.run_files import judge, read_run, reported

        run = read_run(runs)
        with console.status("report") as status:
            path = write_page(
                run,
                out or runs / "report",
                on_section=lambda name: status.update(f"report: {name}"),
            )
        verdict = judge(run.outcomes)
    if as_json:
        typer.echo(json.dumps(reported(path, run, verdict)))
        return
    typer.echo(f"report written to {path}")
    typer.echo("\n".join(verdict.sentences))
    if run.missing:
        typer.echo(f"missing from the run, and named in the report: {', '.join(run.missing)}")
