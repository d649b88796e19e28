"""What a demonstration is once it is recorded; the process that writes it needs no simulator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

DEPTH_SCALE = 1e-4
"""Metres per unit of a recorded depth image."""
STATE_DIM, ACTION_DIM = 7, 7
POINTS = ("target_point", "reference_point")
"""What the instruction names, as points."""


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    Attributes:
        seed, task, robot, instruction: what was shown.
        observations: per step, the dataset's `observation` with encoded images.
        actions: (T, 7) the expert's clean actions, robot units.
        points: {"target_point", "reference_point"}: (T, 3) centres of the block that is named and
            of the reference block, base frame, metres; NaN where a task has no reference.
    """

    seed: int
    task: str
    robot: str
    instruction: str
    observations: tuple[dict[str, Any], ...]
    actions: Float32[np.ndarray, "T 7"]
    points: dict[str, Float32[np.ndarray, "T 3"]]


def steps_of(episode: Episode) -> Iterator[dict[str, Any]]:
    """The episode's RLDS steps in order; reward 1 and terminal at the last."""
    last = len(episode.actions) - 1
    for t, (observation, action) in enumerate(
        zip(episode.observations, episode.actions, strict=True)
    ):
        yield {
            "observation": observation,
            "action": action,
            **{name: points[t] for name, points in episode.points.items()},
            "language_instruction": episode.instruction,
            "is_first": t == 0,
            "is_last": t == last,
            "is_terminal": t == last,
            "reward": np.float32(t == last),
            "discount": np.float32(1.0),
        }
