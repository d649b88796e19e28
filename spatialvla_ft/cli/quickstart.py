"""`spatialvla-ft quickstart`: the main job, from demonstrations to report."""

from __future__ import annotations

import json
import platform
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatialvla_ft.cli.stages import Stage, StageRunner

if TYPE_CHECKING:
    from spatialvla_ft.viz.gate import Verdict

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BINS = "16,32,8,8,8,8,2"
EPISODES = 100
OWN = {
    *("data", "grids", "base", "adapt", "scratch", "export", "eval", "open_loop", "logs"),
    *("environment.json", "timings.json", "export_check.json"),
}
"""What a quickstart leaves in its folder."""
BLOCKS = ("--distractors", "0,1,1,2,2")
"""1 to 3 blocks on the table."""
CAMERA = {"robot_a": "random", "robot_b": "fixed"}
"""A is seen by a calibrated camera of its own in every episode, B's camera stands where it is."""
NOISE = {"robot_a": "0.5", "robot_b": "0.7"}
"""On executed actions, so that the demonstrations show how to come back; B takes smaller steps."""


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
        if not RECIPES.is_dir():
            raise OSError(f"{RECIPES} is missing; run the quickstart from a clone of the project")
        if not resume:
            _start_over(runs)
        runs.mkdir(parents=True, exist_ok=True)
        _write_environment(runs)
        StageRunner(runs, on_change=tell).run(_stages(runs, seed))
        if not resume:  # else some stages ran in another go
            _write_environment(runs, wall_seconds=time.perf_counter() - began)
        verdict, found = _report(runs, out, console)
    seconds = time.perf_counter() - began
    if as_json:
        typer.echo(json.dumps({**found, "seconds": round(seconds, 1)}))
    else:
        console.print(f"{_summary(runs, seed)}\n")
        for sentence in verdict.sentences:
            console.print(sentence, soft_wrap=True)
        console.print(f"report: {out / 'index.html'}   ({seconds / 60:.1f} min)")
    if gate and not verdict.passed:
        raise typer.Exit(1)


def _start_over(runs: Path) -> None:
    """Remove an earlier quickstart.

    Raises:
        OSError: the place is a file, or holds anything that no quickstart makes.
    """
    if not runs.exists():
        return
    found = {place.name for place in runs.iterdir()} if runs.is_dir() else {str(runs)}
    if strange := sorted(found - OWN):
        raise OSError(
            f"--runs {runs} holds {', '.join(strange[:4])}, which no quickstart makes, so it is "
            "left as it is; name a new folder, or add --resume to go on in this one"
        )
    shutil.rmtree(runs)


def _stages(runs: Path, seed: int) -> list[Stage]:
    """The main job, in the order in which it is started.

    The longest way leads from robot A's demonstrations over the base to the adapted policy; all
    else runs beside it and gives way.
    """
    data = runs / "data"
    robot_a, robot_b = (data / f"robot_{x}_touch" / "1.0.0" for x in "ab")
    test_b = data / "robot_b_touch_test" / "1.0.0"
    base, adapted, scratch = (runs / name / "final" for name in ("base", "adapt", "scratch"))
    export = runs / "export"
    return [
        Stage(
            "record_a",
            "record 2500 demonstrations of robot A, a new calibrated camera each time",
            _record("robot_a", 2500, 0, data, "robot_a_touch", workers=2),
        ),
        Stage(
            "base",
            "train a small base on robot A",
            _train("quickstart_base.yaml", runs / "base", robot_a, seed),
            ("record_a",),
            first=True,
        ),
        Stage(
            "record_b",
            "record 200 demonstrations of robot B",
            _record("robot_b", 200, 0, data, "robot_b_touch"),
            ("record_a",),
        ),
        Stage(
            "record_b_test",
            "record 20 demonstrations of robot B that nothing is trained on",
            _record("robot_b", 20, 500_000, data, "robot_b_touch_test"),
            ("record_a",),
        ),
        Stage(
            "grid_b",
            "fit robot B's action grid",
            _grid(robot_b, runs / "grids" / "robot_b"),
            ("record_b",),
        ),
        Stage(
            "scratch",
            "baseline: train from scratch on robot B",
            _train("quickstart_scratch.yaml", runs / "scratch", robot_b, seed),
            ("record_b",),
        ),
        Stage(
            "grid_a",
            "fit robot A's action grid",
            _grid(robot_a, runs / "grids" / "robot_a"),
            ("record_a",),
        ),
        Stage(
            "eval_no_motion",
            "evaluate: no motion",
            _sim(runs, "no_motion", policy="no-motion"),
            ("record_a",),
        ),
        Stage(
            "eval_mean_action",
            "evaluate: the mean action",
            _sim(runs, "mean_action", policy="mean-action", dataset=robot_b),
            ("record_b",),
        ),
        Stage(
            "eval_scratch",
            "evaluate: trained from scratch on B",
            _sim(runs, "scratch", checkpoint=scratch, swap=True),
            ("scratch",),
        ),
        Stage(
            "open_scratch",
            "open loop: trained from scratch on B",
            _open(runs, "scratch", scratch, test_b),
            ("scratch", "record_b_test"),
        ),
        Stage(
            "adapt",
            "adapt the base to robot B: new grid, interpolated embeddings, LoRA",
            (
                *_train("quickstart_adapt.yaml", runs / "adapt", robot_b, seed),
                f"model.base={base}",
                f"grid.file={runs / 'grids' / 'robot_b.json'}",
            ),
            ("base", "grid_b"),
            first=True,
        ),
        Stage(
            "eval_unadapted",
            "evaluate on B: the base, not adapted",
            _sim(runs, "unadapted", checkpoint=base),
            ("base",),
        ),
        Stage(
            "open_unadapted",
            "open loop: the base, not adapted",
            _open(runs, "unadapted", base, test_b),
            ("base", "record_b_test"),
        ),
        Stage(
            "eval_base_on_a",
            "evaluate the base on its own robot A",
            _sim(runs, "base_on_a", robot="robot_a", checkpoint=base),
            ("base",),
        ),
        Stage(
            "eval_adapted",
            "evaluate on B: the adapted policy, also told the other colour",
            _sim(runs, "adapted", checkpoint=adapted, swap=True),
            ("adapt",),
            first=True,
        ),
        Stage(
            "export",
            "merge the adapter and export a checkpoint",
            ("export", str(adapted), "--out", str(export), "--dataset", str(test_b)),
            ("adapt", "record_b_test"),
            first=True,
        ),
        Stage(
            "eval_exported",
            "evaluate on B: the exported checkpoint",
            _sim(runs, "exported", checkpoint=export),
            ("export",),
            first=True,
        ),
        Stage(
            "verify",
            "reload the export in a fresh process and compare",
            ("export", "--verify", str(export), "--report", str(runs / "export_check.json")),
            ("export",),
        ),
        Stage(
            "open_adapted",
            "open loop: the adapted policy",
            _open(runs, "adapted", adapted, test_b),
            ("adapt", "record_b_test"),
        ),
    ]


def _record(
    robot: str, episodes: int, seed: int, out: Path, name: str, workers: int = 1
) -> tuple[str, ...]:
    return (
        *("data", "record", "--robot", robot, "--task", "touch", "--episodes", str(episodes)),
        *("--seed", str(seed), "--action-noise", NOISE[robot], *_scene(robot)),
        *("--workers", str(workers), "--out", str(out), "--name", name),
    )


def _scene(robot: str) -> tuple[str, ...]:
    return ("--camera-mode", CAMERA[robot], *BLOCKS)


def _grid(dataset: Path, out: Path) -> tuple[str, ...]:
    files = ("--out", f"{out}.json", "--plot", f"{out}.png")
    return ("grids", "fit", str(dataset), "--kind", "gaussian", "--bins", BINS, *files)


def _train(recipe: str, output: Path, dataset: Path, seed: int) -> tuple[str, ...]:
    where = (f"output={output}", f"data.datasets.0.path={dataset}", f"seed={seed}")
    file = RECIPES / recipe
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    return ("train", str(file), *where)


def _sim(
    runs: Path,
    name: str,
    *,
    robot: str = "robot_b",
    policy: str = "model",
    checkpoint: Path | None = None,
    dataset: Path | None = None,
    swap: bool = False,
) -> tuple[str, ...]:
    arguments = ["eval", "sim", "--robot", robot, "--task", "touch", "--policy", policy]
    if checkpoint is not None:
        arguments += ["--checkpoint", str(checkpoint), "--name", name]
    if dataset is not None:
        arguments += ["--dataset", str(dataset)]
    arguments += ["--episodes", str(EPISODES), *_scene(robot), *["--swap-test"] * swap]
    return (*arguments, "--out", str(runs / "eval" / f"{name}.json"))


def _open(runs: Path, name: str, checkpoint: Path, dataset: Path) -> tuple[str, ...]:
    out = str(runs / "open_loop" / f"{name}.json")
    return ("eval", "open-loop", str(checkpoint), str(dataset), "--out", out)


def _write_environment(runs: Path, *, wall_seconds: float | None = None) -> None:
    """Versions and hardware; at the end also how long all stages took together."""
    import os
    from datetime import UTC, datetime
    from importlib.metadata import version

    from spatialvla_ft.viz.run_files import WALL

    packages = ("torch", "transformers", "peft", "accelerate", "mujoco", "tensorflow-datasets")
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        **({} if wall_seconds is None else {WALL: round(wall_seconds, 1)}),
    }
    (runs / "environment.json").write_text(json.dumps(facts, indent=1) + "\n")


def _report(runs: Path, out: Path, console) -> tuple[Verdict, dict]:
    """Write the page; the verdict, and what `--json` says."""
    from spatialvla_ft.viz.gate import judge
    from spatialvla_ft.viz.report import write_page
    from spatialvla_ft.viz.run_files import read_run

    run = read_run(runs)
    with console.status("writing the report"):
        page = write_page(run, out)
    verdict = judge(run.outcomes)
    return verdict, {
        "report": str(page),
        "gate_passed": verdict.passed,
        "gate_reasons": list(verdict.reasons),
        "missing": list(run.missing),
    }


def _summary(runs: Path, seed: int) -> str:
    lines = [
        "success on robot B, touch the named block among 1 to 3 (Wilson 95 % interval; training "
        f"seed {seed}):"
    ]
    for name in ("no_motion", "mean_action", "unadapted", "scratch", "adapted", "exported"):
        for result in json.loads((runs / "eval" / f"{name}.json").read_text()):
            low, high = result["interval"]
            lines.append(
                f"  {name.replace('_', ' '):12s} {result['successes']:3d}/{result['episodes']}"
                f"  {low:.0%} .. {high:.0%}, wrong block {result['wrong_objects']}"
            )
    return "\n".join(lines)
