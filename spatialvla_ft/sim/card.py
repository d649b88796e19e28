"""The dataset card of a recording: how its fields map to the standard step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float32

from spatialvla_ft.sim.episode import DEPTH_SCALE, POINTS
from spatialvla_ft.sim.robots import Robot

SLOTS = {"front": "primary", "wrist": "wrist"}


def dataset_card(
    robot: Robot, cameras: Sequence[str], version: str, recorded: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One card of schema version 1, with our depth scale, intrinsics and extrinsics.

    Args:
        robot: that acted.
        cameras: that looked.
        version: of the dataset.
        recorded: fields of `data.card_fields.Recorded`.
    """

    def per_slot(kind: str) -> dict[str, str]:
        return {SLOTS[camera]: f"observation.{kind}_{camera}" for camera in cameras}

    return {
        "version": version,
        "robot": robot.name,
        "control_hz": robot.control_hz,
        "cameras": per_slot("image"),
        "depth": per_slot("depth"),
        "depth_scale": DEPTH_SCALE,
        "intrinsics": per_slot("intrinsics"),
        "extrinsics": per_slot("extrinsics"),
        "language": {"kind": "string", "key": "language_instruction"},
        **{name: name for name in POINTS},
        "drop": {"first": 0},
        "action": {
            "encoding": "EEF_POS",
            "loadable": True,
            "translation": ["action[0:3]"],
            "rotation": {"raw": "labelled_euler", "terms": ["action[3:6]"]},
            "gripper": ["action[-1:]"],
        },
        "proprio": {
            "encoding": "POS_EULER",
            "terms": ["observation.state[0:6]", "zeros(1)", "observation.state[-1:]"],
        },
        **({} if recorded is None else {"recorded": dict(recorded)}),
    }


def proprio_of(state: Float32[np.ndarray, "B 7"]) -> Float32[np.ndarray, "B 8"]:
    """Proprioception of a running simulation as the card standardises a recording's."""
    none = np.zeros((len(state), 1), np.float32)
    return np.concatenate([state[:, :6], none, state[:, -1:]], axis=1)


def write_card(path: Path, name: str, card: dict[str, Any]) -> None:
    """A card file with this one card."""
    content = {"schema_version": 1, "cards": {name: card}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
