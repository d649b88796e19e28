"""The seven robots of RH20T: cameras on the arm, frames, grippers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Float64

CalibTcp = Literal["quaternion", "rotvec_flipped", "euler_mm"]


@dataclass(frozen=True)
class Configuration:
    """One robot with its gripper and cameras; fields as in configurations.yaml.

    Attributes:
        number: 1 to 7, `cfg_000N` in the names of scenes.
        robot, gripper: names.
        full_width: the gripper's width when open, mm as the release counts them.
        calib_tcp: how the tool's pose at calibration is written.
        in_hand: serial numbers of the cameras on the arm; the first one ties marker and base.
        front: serial number of the camera in front of the robot.
        camera_from_tcp: (4, 4) tool frame to the first in-hand camera, metres.
        align_tcp, align_base: (4, 4) rotations into the release's common tool and base frames.
    """

    number: int
    robot: str
    gripper: str
    full_width: float
    calib_tcp: CalibTcp
    in_hand: tuple[str, ...]
    front: str
    camera_from_tcp: Float64[np.ndarray, "4 4"]
    align_tcp: Float64[np.ndarray, "4 4"]
    align_base: Float64[np.ndarray, "4 4"]


@cache
def configurations() -> dict[int, Configuration]:
    """All seven by number."""
    path = Path(__file__).with_name("configurations.yaml")
    return {raw["number"]: _parse(raw) for raw in yaml.safe_load(path.read_text(encoding="utf-8"))}


def _parse(raw: dict[str, Any]) -> Configuration:
    turns = {}
    for name in ("align_tcp", "align_base"):
        turns[name] = np.eye(4)
        turns[name][:3, :3] = raw.get(name, np.eye(3))
    rest = {
        "in_hand": tuple(raw["in_hand"]),
        "camera_from_tcp": np.array(raw["camera_from_tcp"], np.float64),
    }
    return Configuration(**{**raw, **rest, **turns})
