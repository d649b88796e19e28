"""Writing demonstrations as an RLDS dataset, with TensorFlow Datasets itself.

TensorFlow is imported inside: use this in a process that has not imported torch.

The dataset card of a recording: how its fields map to the standard step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float32

from spatialvla_ft.data.rlds.tensorflow import tensorflow_datasets
from spatialvla_ft.data.rlds.write import arm_in_card, write_split
from spatialvla_ft.sim.pool import ACTION_DIM, DEPTH_SCALE, POINTS, STATE_DIM, Episode, steps_of
from spatialvla_ft.sim.robots import Robot

VERSION = "1.0.0"


def features(cameras: Sequence[str], image_size: int) -> Any:
    """The dataset's `tfds.features.FeaturesDict`."""
    tfds = tensorflow_datasets()

    tensor, scalar = tfds.features.Tensor, tfds.features.Scalar
    observation: dict[str, Any] = {
        "state": tensor(
            shape=(STATE_DIM,),
            dtype=np.float32,
            doc="x y z (m) roll pitch yaw (rad, xyz) of the tool in the base frame, gripper 1 open",
        )
    }
    for camera in cameras:
        observation |= {
            f"image_{camera}": tfds.features.Image(
                shape=(image_size, image_size, 3), dtype=np.uint8, encoding_format="jpeg"
            ),
            f"depth_{camera}": tfds.features.Image(
                shape=(image_size, image_size, 1),
                dtype=np.uint16,
                encoding_format="png",
                doc="along the optical axis, unit 0.1 mm, 0 = unknown",
            ),
            f"intrinsics_{camera}": tensor(
                shape=(3, 3), dtype=np.float32, doc="pixels; pixel centres at +0.5"
            ),
            f"extrinsics_{camera}": tensor(
                shape=(4, 4), dtype=np.float32, doc="camera (OpenCV axes) to robot base, m"
            ),
        }
    steps = {
        "observation": observation,
        "action": tensor(
            shape=(ACTION_DIM,),
            dtype=np.float32,
            doc="dx dy dz (m) roll pitch yaw (rad, xyz) in the base frame, gripper 1 open 0 closed",
        ),
        **{
            name: tensor(
                shape=(3,), dtype=np.float32, doc="m, base frame; NaN where nothing is named"
            )
            for name in POINTS
        },
        "language_instruction": tfds.features.Text(),
        "is_first": scalar(dtype=np.bool_),
        "is_last": scalar(dtype=np.bool_),
        "is_terminal": scalar(dtype=np.bool_),
        "reward": scalar(dtype=np.float32),
        "discount": scalar(dtype=np.float32),
    }
    metadata = {
        "episode_id": scalar(dtype=np.int64),
        "seed": scalar(dtype=np.int64),
        "task": tfds.features.Text(),
        "robot": tfds.features.Text(),
        "success": scalar(dtype=np.bool_),
    }
    return tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(steps),
            "episode_metadata": tfds.features.FeaturesDict(metadata),
        }
    )


def write_rlds(
    episodes: Iterable[Episode],
    *,
    out: Path,
    name: str,
    cameras: Sequence[str],
    image_size: int,
    description: str,
) -> Path:
    """Write all episodes as split `train`; returns the dataset's version directory.

    The directory is `out/name/VERSION`, which `tfds.builder_from_directory` opens. Episodes are
    stored in the order given.
    """
    examples = (_example(number, episode) for number, episode in enumerate(episodes))
    return write_split(
        examples,
        out=out,
        name=name,
        version=VERSION,
        features=features(cameras, image_size),
        description=description,
    )


def _example(number: int, episode: Episode) -> dict[str, Any]:
    return {
        "steps": list(steps_of(episode)),
        "episode_metadata": {
            "episode_id": number,
            "seed": episode.seed,
            "task": episode.task,
            "robot": episode.robot,
            "success": True,
        },
    }


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
        **arm_in_card(),
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
