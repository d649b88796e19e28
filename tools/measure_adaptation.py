"""Measure whether spatial embedding adaptation helps, on the simulated robots of the quickstart.

    python tools/measure_adaptation.py --folder runs/adaptation               # everything
    python tools/measure_adaptation.py --folder runs/adaptation --part 1/2    # half of it
    python tools/measure_adaptation.py --folder runs/adaptation --collect lines.jsonl

Records robots A and B and trains the base on A first, with the quickstart's settings. Every run
then starts from that base, and is measured at the same steps on 20 episodes of B that nothing is
trained on; at the end the saved policy acts in closed loop, on seeds that no recipe was tuned on.
Finished stages are kept, so the command can be stopped and started again. One JSON line per run.

`grids`: what becomes of the base's rows where the grid changes; `frozen`: the same with a table
that stays as it was. `rates`: the search for the learning rates of `demos`, on other episodes.
`demos`: what is trained, on 10 and on 200 demonstrations.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from spatialvla_ft.actions import ActionGrid
from spatialvla_ft.actions.normalise import ActionStatistics, normalise
from spatialvla_ft.data import open_dataset
from spatialvla_ft.evaluation.closed_loop import run_closed_loop
from spatialvla_ft.evaluation.open_loop import run_open_loop
from spatialvla_ft.policy.inputs import Collator
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.policy.policies import ModelPolicy
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
SIMULATION = ("--camera-mode", "random", "--distractors", "0")
EXPERIMENTS = ("grids", "rates", "demos", "frozen")
MATCHED = {"grids": (25, 50, 100, 200, 400), "rates": (50, 100, 200), "demos": (200,)}
FIRST_SEED = 3_000_000
EPISODES = 100

LORA = {"lora.train_whole": "[spatial_embed_tokens, position_embedding_3d, vision_tower]"}
TABLE_FROZEN = {"lora.train_whole": "[position_embedding_3d, vision_tower]"}
FULL = {
    "lora": "null",
    "train.freeze": "[language_model.model.embed_tokens, language_model.lm_head]",
}
SPATIAL = {"lora": "null", "train.only": "[spatial_embed_tokens, position_embedding_3d]"}
GRIDS = {
    "adapted": {"grid.adapt_embeddings": "true"},
    "not interpolated": {"grid.adapt_embeddings": "false"},
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        experiment: grids, demos or rates.
        arm: what is compared.
        overrides: of recipes/quickstart_adapt.yaml.
        seed: of the recipe: order of the frames, first adapters, chosen demonstrations.
        steps: optimiser steps.
        about: what else tells the run apart.
    """

    experiment: str
    arm: str
    overrides: dict[str, str]
    seed: int
    steps: int
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder of the run."""
        words = [self.experiment, self.arm, *map(str, self.about.values()), f"seed{self.seed}"]
        return "-".join(words).replace(" ", "_")


def all_runs(experiments: list[str]) -> list[Run]:
    """The runs of these experiments, in order."""
    makers = {
        "grids": lambda: _grids("trained", LORA),
        "frozen": lambda: _grids("frozen", TABLE_FROZEN),
        "rates": _rates,
        "demos": _demos,
    }
    return [run for name in experiments for run in makers[name]()]


def _grids(table: str, trained: dict[str, str]) -> list[Run]:
    runs = []
    for seed in (0, 1, 2):
        arms = [
            (arm, kind, {"grid.fit": kind, **how})
            for kind in ("gaussian", "uniform")
            for arm, how in GRIDS.items()
        ]
        arms.append(("old grid", "kept", {}))
        for arm, kind, how in arms:
            about = {"grid": kind, "table": table, "demonstrations": 200}
            runs.append(Run("grids", arm, {**trained, **how}, seed, 400, about))
    return runs


def _rates() -> list[Run]:
    rates = {
        "full": ("1.0e-4", "5.0e-4", "1.5e-3"),
        "spatial only": ("1.0e-4", "5.0e-4", "1.5e-3", "5.0e-3"),
    }
    return [
        Run("rates", arm, _what(arm, 200, rate), 9, 200, {"demonstrations": 200, "rate": rate})
        for arm in rates
        for rate in rates[arm]
    ]


def _demos() -> list[Run]:
    return [
        Run(
            "demos",
            arm,
            _what(arm, count, rate),
            seed,
            200,
            {"demonstrations": count, "rate": rate},
        )
        for seed in (0, 1)
        for count in (200, 10)
        for arm, rate in RATES.items()
    ]


TRAINED = {"LoRA": LORA, "full": FULL, "spatial only": SPATIAL}
RATES = {"LoRA": "5.0e-4", "full": "5.0e-4", "spatial only": "5.0e-4"}
"""What `rates` found best; LoRA's is the quickstart's (docs/log.md)."""


def _what(arm: str, count: int, rate: str) -> dict[str, str]:
    return {
        **TRAINED[arm],
        "grid.fit": "gaussian",
        "data.datasets.0.episodes": str(count),
        "train.learning_rate": rate,
    }


def prepare(folder: Path) -> None:
    """Demonstrations and the base, as in the quickstart."""
    data = folder / "data"
    for name, robot, episodes, seed in (
        ("robot_a_touch", "robot_a", 2000, 0),
        ("robot_b_touch", "robot_b", 200, 0),
        ("robot_b_touch_test", "robot_b", 20, 500_000),
        ("robot_b_touch_search", "robot_b", 20, 600_000),
    ):
        if not (data / name / "1.0.0").is_dir():
            size = ("--episodes", str(episodes), "--seed", str(seed), "--action-noise", "0.3")
            where = ("--out", str(data), "--name", name)
            _command(
                "data", "record", "--robot", robot, "--task", "touch", *size, *SIMULATION, *where
            )
    if not (folder / "base" / "final").is_dir():
        _command(
            "train",
            "recipes/quickstart_base.yaml",
            f"output={folder / 'base'}",
            f"data.datasets.0.path={data / 'robot_a_touch' / '1.0.0'}",
        )


def _command(*arguments: str) -> None:
    subprocess.run([sys.executable, "spatialvla_ft_cli.py", *arguments], check=True, cwd=ROOT)


def perform(run: Run, folder: Path) -> dict[str, Any]:
    """Train and measure; the content of the run's line."""
    output = folder / run.experiment / run.name
    recipe = load_recipe(
        ROOT / "recipes" / "quickstart_adapt.yaml",
        [
            f"output={output}",
            f"seed={run.seed}",
            f"model.base={folder / 'base' / 'final'}",
            f"data.datasets.0.path={folder / 'data' / 'robot_b_touch' / '1.0.0'}",
            "data.holdout=0",
            "data.workers=0",
            "grid.file=null",
            f"train.steps={run.steps}",
            "train.log_every=25",
            *(f"{key}={value}" for key, value in run.overrides.items()),
        ],
    )
    held = "robot_b_touch_search" if run.experiment == "rates" else "robot_b_touch_test"
    data = open_dataset(folder / "data" / held / "1.0.0", card=None, horizon=1)
    torch.set_num_threads(1)
    base = ActionGrid.from_boundaries(_base_grid(folder).edges)
    built = build(recipe)
    key = built.datasets[0].name
    curve = []
    measuring = 0.0

    def measure(step: int, _: dict[str, float] | None = None) -> None:
        nonlocal measuring
        if step and step not in MATCHED[run.experiment]:
            return
        began = time.perf_counter()
        model = built.spatialvla.eval()
        point = {"step": step, **measure_open_loop(model, built.processor, data, key)}
        if run.experiment == "grids" and step + run.seed == 0:  # the same for every seed
            point["closed_loop"] = measure_closed_loop(model, built.processor, key)
        curve.append(point)
        built.model.train()
        measuring += time.perf_counter() - began

    if run.experiment != "demos":
        measure(0)
    began, before = time.perf_counter(), measuring
    result = train(built, resume=False, on_log=measure)
    training = time.perf_counter() - began - (measuring - before)
    line: dict[str, Any] = {
        "experiment": run.experiment,
        "arm": run.arm,
        **run.about,
        "seed": run.seed,
        "steps": run.steps,
        "learning_rate": recipe.train.learning_rate,
        "trained_parameters": sum(p.numel() for p in built.model.parameters() if p.requires_grad),
        "overrides": run.overrides,
        "moved": moved(base, built.processor.grid),
        "held_out": {"dataset": held, "frames": len(data)},
        "curve": curve,
        "training_seconds": round(training, 1),
        "versions": versions(),
    }
    if run.experiment != "rates":
        curve[-1]["closed_loop"] = measure_closed_loop(*load_policy_model(result), key)
    return line


def _base_grid(folder: Path) -> ActionGrid:
    from spatialvla_ft.actions.grid_io import load_grid

    return load_grid(folder / "base" / "final")


@torch.no_grad()
def measure_open_loop(model: Any, processor: Any, data: Any, key: str) -> dict[str, Any]:
    """Losses and errors on every step of held-out episodes.

    Returns:
        loss: nats per label token, what training minimises; depends on the grid.
        token_loss: the same by slot.
        density: nats per action, minus the log of the density that the tokens' probabilities make
            over normalised translations and rotations (spread evenly in each bin). Grids with
            smaller bins give more tokens to choose from, and this weighs it up.
        accuracy: share of the slot's tokens that are the most likely ones.
        l1: mean absolute error of the greedy action by dimension, in the robot's units.
    """
    collate = Collator(processor, "sensor", unnorm_key=key)
    losses, right = [], []
    for start in range(0, len(data), 32):
        batch = collate([data[i] for i in range(start, min(start + 32, len(data)))])
        rows = model(**batch, logits_to_keep="labels").logits.float()
        labels = batch["labels"][:, 1:]
        labels = labels[labels != -100]
        losses.append(F.cross_entropy(rows, labels, reduction="none").reshape(-1, 4))
        right.append((rows.argmax(-1) == labels).reshape(-1, 4))
    per_slot = torch.cat(losses).double()
    names = [slot.name for slot in processor.grid.slots]
    statistics = ActionStatistics.from_dict(processor.statistics[key])
    actions = np.clip(normalise(data.actions(), statistics), -1, 1).astype(np.float64)
    volumes = log_volumes(processor.grid, actions)
    accuracy = torch.cat(right).double().mean(0)
    open_loop = run_open_loop(
        model, processor, data, unnorm_key=key, frames=len(data), batch_size=32
    )
    return {
        "loss": round(float(per_slot.mean()), 5),
        "token_loss": {n: round(float(per_slot[:, i].mean()), 5) for i, n in enumerate(names)},
        "density": round(float(per_slot[:, :3].sum(1).mean() + volumes.mean()), 5),
        "accuracy": {n: round(float(accuracy[i]), 5) for i, n in enumerate(names)},
        "l1": dict(zip(open_loop.names, (round(v, 7) for v in open_loop.l1["model"]), strict=True)),
    }


def measure_closed_loop(model: Any, processor: Any, key: str) -> dict[str, Any]:
    """Successes of touching the block, Wilson 95 % interval; `solved` has a 1 for each success."""
    policy = ModelPolicy(model, processor, unnorm_key=key)
    seeds = range(FIRST_SEED, FIRST_SEED + EPISODES)
    found = run_closed_loop(
        policy, "robot_b", "touch", seeds, parallel=EPISODES, camera_mode="random"
    )
    ended = {result.seed: result.success for result in found.results}
    return {
        "episodes": found.episodes,
        "successes": found.successes,
        "interval": [round(limit, 4) for limit in found.interval],
        "mean_steps": round(found.mean_steps, 2),
        "first_seed": FIRST_SEED,
        "solved": "".join(str(int(ended[seed])) for seed in seeds),
    }


def log_volumes(grid: ActionGrid, actions: np.ndarray) -> np.ndarray:
    """(n,) log of the volume of the translation bin times that of the rotation bin of actions."""
    ids = grid.encode(actions)
    counts = [len(grid.midpoints[axis]) for axis in ("theta", "phi", "r", "roll", "pitch", "yaw")]
    theta, phi, r = np.unravel_index(ids[:, 0], counts[:3])
    roll, pitch, yaw = np.unravel_index(ids[:, 1] - grid.offsets[1], counts[3:])
    edges = grid.edges
    shell = np.diff(edges["r"] ** 3)[r] / 3
    cap = -np.diff(np.cos(edges["theta"]))[theta]
    box = np.diff(edges["roll"])[roll] * np.diff(edges["pitch"])[pitch]
    return np.log(shell * cap * np.diff(edges["phi"])[phi] * box * np.diff(edges["yaw"])[yaw])


def moved(old: ActionGrid, new: ActionGrid) -> dict[str, float]:
    """Share of each slot's new bins whose midpoint lies in another bin of the old grid."""
    shares = {}
    for slot in new.slots:
        stays = np.ones(())
        for axis in slot.axes:
            inside = np.searchsorted(old.edges[axis][1:-1], new.midpoints[axis], side="right")
            stays = np.multiply.outer(stays, inside == np.arange(len(inside)))
        shares[slot.name] = round(1 - float(stays.mean()), 4)
    return shares


def versions() -> dict[str, str]:
    """Of what the numbers depend on, and the commit that was measured."""
    told = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, cwd=ROOT
    )
    note = ROOT / "COMMIT"  # of a tree without git
    commit = note.read_text().strip() if note.is_file() else told.stdout.strip()
    packages = ("torch", "transformers", "peft", "mujoco")
    return {"commit": commit, "python": platform.python_version()} | {
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
    parser.add_argument("--folder", type=Path, required=True, help="where data and runs are kept")
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument("--part", default="1/1", help="this process's share of the runs, e.g. 1/2")
    parser.add_argument("--collect", type=Path, help="only write the finished runs' lines here")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if given.collect is not None:
        runs = all_runs(list(EXPERIMENTS))
        print(f"{collect(folder, given.collect, runs)} of {len(runs)} runs in {given.collect}")
        return
    prepare(folder)
    part, parts = map(int, given.part.split("/"))
    for number, run in enumerate(all_runs(given.experiments)):
        file = folder / "lines" / f"{run.name}.json"
        if number % parts != part - 1 or file.is_file():
            continue
        began = time.perf_counter()
        line = perform(run, folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(line) + "\n")
        last = line["curve"][-1]
        solved = last.get("closed_loop", {}).get("successes", "-")
        print(
            f"{run.name}: loss {last['loss']:.3f}, density {last['density']:.3f}, solved {solved}, "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
