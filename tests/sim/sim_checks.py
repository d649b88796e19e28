"""What sim tests run in a worker process: pytest's own may hold torch, which rendering breaks."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import threading
import time

import numpy as np

from spatialvla_ft.processes import gl_backend
from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.expert import expert
from spatialvla_ft.sim.layout import COLOURS
from spatialvla_ft.sim.recorder import Plan
from spatialvla_ft.sim.recording import record_episode
from spatialvla_ft.sim.rendering import Renderer


def surface_errors(channel, robot, seeds, mode):
    """Back-project each block's pixels by hand: (camera, n pixels, worst metres off its surface).

    The oracle is the block's pose in the physics, which the renderer's matrices never touch.
    """
    env = TabletopEnv(
        robot, "touch", distractors=1, camera_mode=mode, cameras=("front", "wrist"), image_size=128
    )
    found = []
    for seed in seeds:
        env.reset(seed)
        seen = env.observe()
        for camera in ("front", "wrist"):
            K, T = seen.intrinsics[camera], seen.extrinsics[camera]
            for block in env.state().blocks:
                errors = []
                for row, column in np.argwhere(coloured(seen.images[camera], block.colour)):
                    ray = np.linalg.solve(K, [column + 0.5, row + 0.5, 1.0])
                    point = (T @ [*(ray * seen.depth[camera][row, column]), 1.0])[:3]
                    local = np.abs(block.rotation.T @ (point - block.position)) - block.half_size
                    errors.append(abs(local.max()))
                found.append((camera, len(errors), max(errors, default=0.0)))
    channel.send(found)


def coloured(image, colour):
    """Pixels with the hue of a named colour, whatever the light."""
    direction = np.array(COLOURS[colour]) / np.linalg.norm(COLOURS[colour])
    pixels = image.astype(float)
    norm = np.linalg.norm(pixels, axis=-1)
    return (norm > 60) & (pixels @ direction > 0.99 * norm)


def episode_digest(channel, robot, task, seeds, options, actions):
    """Per seed: sha of the pictures after the actions, the state, and the result."""
    env = TabletopEnv(robot, task, **options)
    answers = []
    for seed in seeds:
        env.reset(seed)
        for action in actions:
            env.step(action)
        seen = env.observe()
        answers.append((digest(seen.images["front"], seen.depth["front"]), seen.state))
    channel.send(answers)


def digest(*arrays):
    """Sha of the arrays' bytes."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def expert_rollout(channel, robot, task, seed, options):
    """(success, steps) of the expert."""
    env = TabletopEnv(robot, task, **options)
    env.reset(seed)
    while not env.done:
        result = env.step(expert(env))
    channel.send((result.success, result.steps))


def loaded_modules(channel):
    """Modules in a worker after an observation."""
    env = TabletopEnv("robot_a", "touch")
    env.reset(0)
    env.observe()
    channel.send(sorted(sys.modules))


def recorded_again(channel, plan: Plan, attempts):
    """The episodes a plan leads to, without any dataset in between."""
    envs = plan.environments()
    channel.send(
        [record_episode(envs[i % len(envs)], plan.seed + i, plan.action_noise) for i in attempts]
    )


def read_with_tfds(channel, directory):
    """What tfds itself finds in a dataset directory."""
    import tensorflow_datasets as tfds

    dataset = tfds.builder_from_directory(directory).as_dataset(split="train")
    channel.send(
        [
            {
                "meta": {k: v.numpy() for k, v in episode["episode_metadata"].items()},
                "steps": list(episode["steps"].as_numpy_iterator()),
            }
            for episode in dataset
        ]
    )


def fail(channel, error):
    """Raise."""
    del channel
    raise error


def die(channel, number):
    """End by a signal, after a message."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel.send(os.environ["MUJOCO_GL"])
    os.kill(os.getpid(), number)


def backend(channel):
    """What the user asked for, and what `import mujoco` is told."""
    channel.send((gl_backend(), os.environ["MUJOCO_GL"]))


def draw_nothing(channel):
    """Open a GL context."""
    Renderer()
    channel.send(None)


def die_reading(channel):
    """End as for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_talking(channel):
    """End in the middle of a message."""
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    channel.send(bytes(1 << 26))  # more than the connection holds
    time.sleep(60)
