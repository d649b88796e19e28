"""The main job as stages: two robots recorded, a base trained, adapted, exported, evaluated."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from spatialvla_ft.quickstart.run_files import WALL, RunFiles, read_run
from spatialvla_ft.quickstart.stages import Stage, StageRunner

BINS = "16,32,8,8,8,8,2"
EPISODES = 100
BLOCKS = ("--distractors", "0,1,1,2,2")
"""1 to 3 blocks on the table."""
CAMERA = {"robot_a": "random", "robot_b": "fixed"}
"""A is seen by a calibrated camera of its own in every episode, B's camera stands where it is."""
NOISE = {"robot_a": "0.5", "robot_b": "0.7"}
"""On executed actions, so that the demonstrations show how to come back; B takes smaller steps."""
OWN = {
    *("data", "grids", "base", "adapt", "scratch", "export", "eval", "open_loop", "logs"),
    *("environment.json", "timings.json", "export_check.json"),
}
"""What a quickstart leaves in its folder."""


def run_quickstart(
    runs: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    on_change: Callable[[Stage, float | None], None],
) -> RunFiles:
    """Run every stage and read what they left.

    Args:
        runs: where everything goes.
        seed: of all training.
        resume: keep finished stages of an earlier run.
        on_change: called with a stage when it starts (None) and when it is done (its seconds).

    Raises:
        OSError: `runs` holds something that no quickstart makes.
        StageError: a stage failed.
    """
    began = time.perf_counter()
    if not resume:
        _start_over(runs)
    runs.mkdir(parents=True, exist_ok=True)
    _write_environment(runs)
    StageRunner(runs, on_change=on_change).run(_stages(runs, seed))
    if not resume:  # else some stages ran in another go
        _write_environment(runs, wall_seconds=time.perf_counter() - began)
    return read_run(runs)


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
            _train("quickstart_base", runs / "base", robot_a, seed),
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
            _train("quickstart_scratch", runs / "scratch", robot_b, seed),
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
                *_train("quickstart_adapt", runs / "adapt", robot_b, seed),
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


def _scene(robot: str) -> tuple[str, ...]:
    return ("--camera-mode", CAMERA[robot], *BLOCKS)


def _record(
    robot: str, episodes: int, seed: int, out: Path, name: str, workers: int = 1
) -> tuple[str, ...]:
    return (
        *("data", "record", "--robot", robot, "--task", "touch", "--episodes", str(episodes)),
        *("--seed", str(seed), "--action-noise", NOISE[robot], *_scene(robot)),
        *("--workers", str(workers), "--out", str(out), "--name", name),
    )


def _grid(dataset: Path, out: Path) -> tuple[str, ...]:
    files = ("--out", f"{out}.json", "--plot", f"{out}.png")
    return ("grids", "fit", str(dataset), "--kind", "gaussian", "--bins", BINS, *files)


def _train(recipe: str, output: Path, dataset: Path, seed: int) -> tuple[str, ...]:
    where = (f"output={output}", f"data.datasets.0.path={dataset}", f"seed={seed}")
    return ("train", recipe, *where)


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


def summary(runs: Path, seed: int) -> str:
    """Successes of every policy on robot B, a line each."""
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
