"""A made-up run of the quickstart, small enough for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SETTINGS = {
    "image_size": 32,
    "camera_mode": "random",
    "distractors": [0, 1, 1, 2, 2],
    "first_seed": 1000,
}
SOLVED = {
    "base_on_a": 43,
    "no_motion": 0,
    "mean_action": 1,
    "unadapted": 3,
    "scratch": 12,
    "adapted": 48,
    "exported": 47,
}
STILL = [[0.0] * 7] * 80
"""Robot B gets 8 s at 10 Hz for touching, so standing still ends there, unsolved."""


def episodes(count: int, solved: int, wrong: int = 0) -> list[dict[str, Any]]:
    """Results whose last ones are solved, and whose first ones end at a wrong block."""
    return [
        {
            "seed": 1000 + i,
            "instruction": "touch the red block",
            "success": i >= count - solved,
            "wrong_object": i < wrong,
            "steps": 80,
        }
        for i in range(count)
    ]


def result(
    name: str, successes: int, episodes_: int = 50, wrong: int = 0, **changes: Any
) -> dict[str, Any]:
    """A closed-loop result whose first episode failed after 80 actions without motion."""
    return {
        "policy": name,
        "robot": "robot_a" if name == "base_on_a" else "robot_b",
        "task": "touch",
        "episodes": episodes_,
        "successes": successes,
        "wrong_objects": wrong,
        "mean_steps": 61.25,
        "settings": dict(SETTINGS),
        "results": episodes(episodes_, successes, wrong),
        "traces": {"1000": STILL, "1001": STILL} if name in ("adapted", "unadapted") else {},
        "swap": swap(40, 38) if name == "adapted" else None,
        **changes,
    }


def swap(count: int, solved: int, wrong: int = 0) -> dict[str, Any]:
    """The scenes with a distractor of a result that solved its last ones, the other word said."""
    scenes = [r for r in episodes(50, 48) if r["seed"] % 5]
    for i, scene in enumerate(scenes):
        scene["instruction"] = "touch the blue block"
        scene["success"], scene["wrong_object"] = i >= count - solved, i < wrong
    followed = sum(r["success"] and r["seed"] >= 1002 for r in scenes)
    return {
        "episodes": count,
        "successes": solved,
        "wrong_objects": wrong,
        "followed": followed,
        "chance": 0.18,
        "results": scenes,
        "traces": {"1001": STILL},
    }


def write_json(path: Path, content: Any) -> None:
    """JSON, with the folder it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_run(folder: Path) -> Path:
    """All files of a run but the demonstrations."""
    for name, successes in SOLVED.items():
        write_json(folder / "eval" / f"{name}.json", [result(name, successes)])
    for i, name in enumerate(("adapted", "unadapted", "scratch")):
        write_json(
            folder / "open_loop" / f"{name}.json",
            {
                "dataset": "robot_b_touch/1.0.0",
                "frames": 211,
                "names": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"],
                "units": ["m"] * 3 + ["rad"] * 3 + ["1"],
                "l1": {"model": [0.0011 + i] * 7, "no motion": [7.5] * 7, "mean action": [6.5] * 7},
                "token_accuracy": {"translation": 0.31, "rotation": 0.42, "gripper": 1.0},
            },
        )
    for name in ("base", "adapt", "scratch"):
        lines: list[dict[str, float]] = [
            {"step": step, "loss": 9 - step / 100, "samples_per_second": 190.0}
            for step in range(50, 601, 50)
        ]
        lines.append({"step": 600, "validation/loss": 3.217, "validation/accuracy/rotation": 0.27})
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name / "metrics.jsonl").write_text(text)
        write_json(folder / name / "final/trained.json", {"recipe": {"seed": 4}})
    (folder / "grids").mkdir()
    for name in ("robot_a", "robot_b"):
        Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(folder / f"grids/{name}.png")
    write_json(
        folder / "export" / "config.json",
        {"vision_config": {"image_size": 32, "patch_size": 8}, "ego3d_patch_reso": 2},
    )
    write_json(folder / "export_check.json", {"max_logit_difference": 2.5e-6, "inputs": 24})
    write_json(
        folder / "timings.json",
        [
            {"stage": "record", "seconds": 131.2, "command": "spatialvla-ft data record --x <y>"},
            {"stage": "adapt", "seconds": 42.25, "command": "spatialvla-ft train adapt.yaml"},
        ],
    )
    facts = {"python": "3.12.3", "cores": 2, "wall_seconds": 140.4}
    write_json(folder / "environment.json", facts)
    return folder
