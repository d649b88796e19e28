"""Demonstrations: run the expert, keep what it saw and did, images already compressed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Float32, Float64
from PIL import Image

from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.expert import expert
from spatialvla_ft.sim.pool import DEPTH_SCALE, POINTS, Episode
from spatialvla_ft.sim.state import Observation
from spatialvla_ft.sim.tasks import Way

JPEG_QUALITY = 95


def perturb(
    env: TabletopEnv, action: Float64[np.ndarray, 7], sigma: float, rng: np.random.Generator
) -> Float64[np.ndarray, 7]:
    """Add Gaussian noise to the six motions; `sigma` is a share of the robot's largest step."""
    scale = np.array([env.robot.max_translation] * 3 + [env.robot.max_rotation] * 3)
    return np.append(action[:6] + sigma * scale * rng.standard_normal(6), action[6])


def record_episode(
    env: TabletopEnv, seed: int, action_noise: float = 0.0, way: Way | None = None
) -> Episode | None:
    """Run the expert on one seed; None if it fails. `way` is how it passes a post.

    With `action_noise` the executed actions are noisy while the clean ones are recorded, so that
    a policy sees how to come back. The observation after the last action is not kept.
    """
    env.reset(seed)
    rng = np.random.default_rng([seed, 11])
    observations, actions, places = [], [], []
    success = False
    while not env.done:
        observations.append(encode_observation(env.observe()))
        places.append(named_points(env))
        action = env.clip(expert(env, way))
        actions.append(action)
        success = env.step(perturb(env, action, action_noise, rng)).success
    if not success:
        return None
    return Episode(
        seed=seed,
        task=env.task.name,
        robot=env.robot.name,
        instruction=env.instruction,
        observations=tuple(observations),
        actions=np.array(actions, np.float32),
        points={name: np.stack([at[name] for at in places]) for name in POINTS},
    )


def named_points(env: TabletopEnv) -> dict[str, Float32[np.ndarray, 3]]:
    """Centres of the blocks that the instruction names, base frame, metres; NaN for none."""
    blocks = env.state().blocks
    target = blocks[0].position
    reference = blocks[1].position if env.task.places else np.full(3, np.nan)
    return dict(zip(POINTS, (target.astype(np.float32), reference.astype(np.float32)), strict=True))


def encode_observation(observation: Observation) -> dict[str, Any]:
    """The dataset's `observation`: JPEG colour, 16-bit PNG depth of 0.1 mm, float32 calibration."""
    encoded: dict[str, Any] = {"state": observation.state}
    for camera, image in observation.images.items():
        encoded[f"image_{camera}"] = simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=JPEG_QUALITY, colorsubsampling="444"
        )
        encoded[f"depth_{camera}"] = encode_depth(observation.depth[camera])
        encoded[f"intrinsics_{camera}"] = observation.intrinsics[camera].astype(np.float32)
        encoded[f"extrinsics_{camera}"] = observation.extrinsics[camera].astype(np.float32)
    return encoded


def encode_depth(depth: Float32[np.ndarray, "H W"]) -> bytes:
    """Depth in metres as a 16-bit PNG of 0.1 mm; 0 stays 0, unknown."""
    units = np.clip(np.rint(depth / DEPTH_SCALE), 0, 65535).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(units).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
