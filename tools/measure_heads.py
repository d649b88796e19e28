"""Measure action heads against one another, in closed loop, on the simulated robots.

    python tools/measure_heads.py --folder runs/heads --base BASE --data DATA        # everything
    python tools/measure_heads.py --folder runs/heads --base BASE --data DATA --part 1/2
    python tools/measure_heads.py --folder runs/heads --collect docs/results/heads.jsonl

BASE is the base of `spatialvla-ft quickstart` (runs/quickstart/base/final), DATA the folder of its
datasets (runs/quickstart/data). Every run is recipes/quickstart_adapt.yaml with another head: the
same base, adapters, steps, batches and learning rate; the head is trained whole. `touch` is the
quickstart's task, whose demonstrations agree; of `detour`, where a post stands in the way, one
expert passes it on the left and one on either side. Policies act on seeds that no recipe was tuned
on. Finished runs are kept, so the command can be stopped and started again. One JSON line per run.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spatialvla_ft.evaluation.closed_loop import run_closed_loop
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.policy.policies import ModelPolicy
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
HEADS = ("grid_tokens", "voxel_heatmap", "l1", "linear_bins", "flow")
EXPERTS = ("touch", "left", "either")
"""Task touch; task detour on the left; task detour on either side."""
DEMONSTRATIONS = (10, 50, 200)
SEEDS = (0, 1, 2)
STEPS = 400
EPISODES = 100
FIRST_SEED = 3_000_000
SIMULATION = ("--camera-mode", "fixed", "--distractors", "0,1,1,2,2", "--action-noise")
NOISE = {"touch": "0.7", "left": "0.3", "either": "0.3"}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        expert: of EXPERTS.
        head: of HEADS.
        demonstrations: how many, chosen by the seed.
        seed: of the recipe.
    """

    expert: str
    head: str
    demonstrations: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and line."""
        return f"{self.expert}-{self.demonstrations}-seed{self.seed}-{self.head}"

    @property
    def task(self) -> str:
        """In the simulation."""
        return "touch" if self.expert == "touch" else "detour"


def all_runs(experts: list[str]) -> list[Run]:
    """Seed by seed, so that what is finished early says something of everything."""
    return [
        Run(expert, head, count, seed)
        for seed in SEEDS
        for count in DEMONSTRATIONS
        for expert in experts
        for head in HEADS
    ]


def demonstrations(expert: str, data: Path) -> Path:
    """The dataset of an expert, recorded where it is not there."""
    name = "robot_b_touch" if expert == "touch" else f"robot_b_detour_{expert}"
    folder = data / name / "1.0.0"
    if not folder.is_dir():
        task = (
            ("--task", "touch") if expert == "touch" else ("--task", "detour", "--expert", expert)
        )
        where = ("--episodes", "200", "--seed", "0", "--out", str(data), "--name", name)
        command = (
            "data",
            "record",
            "--robot",
            "robot_b",
            *task,
            *SIMULATION,
            NOISE[expert],
            *where,
        )
        subprocess.run([sys.executable, "spatialvla_ft_cli.py", *command], check=True, cwd=ROOT)
    return folder


def perform(run: Run, folder: Path, base: Path, data: Path) -> dict[str, Any]:
    """Train and evaluate; the content of the run's line."""
    output = folder / "runs" / run.name
    grid = base.parents[1] / "grids" / "robot_b.json"
    recipe = load_recipe(
        ROOT / "recipes" / "quickstart_adapt.yaml",
        [
            f"output={output}",
            f"seed={run.seed}",
            f"model.base={base}",
            f"model.head.kind={run.head}",
            f"data.datasets.0.path={demonstrations(run.expert, data)}",
            f"data.datasets.0.episodes={run.demonstrations}",
            f"grid.file={grid if run.expert == 'touch' else 'null'}",
            f"grid.fit={'null' if run.expert == 'touch' else 'gaussian'}",
            "data.holdout=0",
            "data.workers=0",
            f"train.steps={STEPS}",
            f"train.save_every={STEPS}",
            *([] if run.head == "grid_tokens" else ["train.slot_weights=null"]),
        ],
    )
    torch.set_num_threads(1)
    built = build(recipe)
    key = built.datasets[0].name
    losses: list[float] = []
    began = time.perf_counter()
    result = train(
        built, resume=False, on_log=lambda step, told: losses.append(told.get("loss", float("nan")))
    )
    training = time.perf_counter() - began
    model, processor = load_policy_model(result)
    began = time.perf_counter()
    found = run_closed_loop(
        ModelPolicy(model, processor, unnorm_key=key),
        "robot_b",
        run.task,
        range(FIRST_SEED, FIRST_SEED + EPISODES),
        parallel=EPISODES,
        camera_mode="fixed",
        distractors=(0, 1, 1, 2, 2),
    )
    acting = time.perf_counter() - began
    shutil.rmtree(output)
    return {
        "expert": run.expert,
        "task": run.task,
        "head": run.head,
        "demonstrations": run.demonstrations,
        "seed": run.seed,
        "base": built.base_fingerprint,
        "steps": STEPS,
        "learning_rate": recipe.train.learning_rate,
        "head_parameters": (
            0
            if model.action_head is None
            else sum(p.numel() for p in model.action_head.parameters())
        ),
        "losses": [round(loss, 4) for loss in losses],
        "closed_loop": {
            "episodes": found.episodes,
            "first_seed": FIRST_SEED,
            "successes": found.successes,
            "interval": [round(limit, 4) for limit in found.interval],
            "mean_steps": round(found.mean_steps, 2),
            "wrong_objects": found.wrong_objects,
            "collisions": found.collisions,
        },
        "training_seconds": round(training, 1),
        "evaluation_seconds": round(acting, 1),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what the numbers depend on, and the commit that was measured."""
    told = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, cwd=ROOT
    )
    packages = ("torch", "transformers", "peft", "mujoco")
    return {"commit": told.stdout.strip(), "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


def collect(folder: Path, out: Path, runs: list[Run]) -> int:
    """Write the lines of the finished runs, in order; how many there are."""
    files = [folder / "lines" / f"{run.name}.json" for run in runs]
    lines = [file.read_text() for file in files if file.is_file()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(lines))
    return len(lines)


def main() -> None:
    """Do what is left to do."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--base", type=Path, help="of the quickstart: runs/quickstart/base/final")
    parser.add_argument("--data", type=Path, help="its datasets: runs/quickstart/data")
    parser.add_argument("--experts", nargs="+", default=list(EXPERTS), choices=EXPERTS)
    parser.add_argument("--part", default="1/1", help="this process's share of the runs, e.g. 1/2")
    parser.add_argument("--collect", type=Path, help="only write the finished runs' lines here")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if given.collect is not None:
        runs = all_runs(list(EXPERTS))
        print(f"{collect(folder, given.collect, runs)} of {len(runs)} runs in {given.collect}")
        return
    if given.base is None or given.data is None:
        parser.error(
            "--base and --data are needed to measure; `spatialvla-ft quickstart` makes both"
        )
    part, parts = map(int, given.part.split("/"))
    for number, run in enumerate(all_runs(given.experts)):
        file = folder / "lines" / f"{run.name}.json"
        if number % parts != part - 1 or file.is_file():
            continue
        line = perform(run, folder, given.base.resolve(), given.data.resolve())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(line) + "\n")
        told = line["closed_loop"]
        print(
            f"{run.name}: solved {told['successes']} of {told['episodes']}, wrong block "
            f"{told['wrong_objects']}, hit the post {told['collisions']}; "
            f"{line['training_seconds']:.0f} s of training, "
            f"{line['evaluation_seconds']:.0f} s of acting",
            flush=True,
        )


if __name__ == "__main__":
    main()
