"""Play an evaluated episode again, and take pictures.

The simulation is deterministic, so the executed actions are enough. It runs in a process without
torch, because software rendering and torch do not share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.sim.worker import Channel, Worker


@dataclass(frozen=True)
class Replay:
    """One episode, seen by the front camera.

    Attributes:
        seed, instruction: which episode.
        success: how the replay ended.
        as_recorded: the replay took as many steps and ended as the evaluation says.
        frames: pictures for people: before the first action and after each.
        image: what the policy saw first.
        depth: of `image`, metres along the optical axis, 0 = unknown.
        intrinsics: K of `image`.
        control_hz: actions per second.
    """

    seed: int
    instruction: str
    success: bool
    as_recorded: bool
    frames: UInt8[np.ndarray, "T H W 3"]
    image: UInt8[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"]
    intrinsics: Float64[np.ndarray, "3 3"]
    control_hz: float


def replay_episodes(wanted: Sequence[tuple[ClosedLoop, int]], *, size: int = 384) -> list[Replay]:
    """Replay episodes given as (result, seed); the result must hold the episode's trace.

    Args:
        wanted: which episodes.
        size: side of the pictures for people, pixels.

    Raises:
        ValueError: the robot, the task or a setting is unknown.
        WorkerError: the process failed, for instance for lack of an OpenGL library.
    """
    if not wanted:
        return []
    with Worker(f"{__name__}:play", list(wanted), size) as worker:
        return [worker.recv() for _ in wanted]


def play(channel: Channel, wanted: Sequence[tuple[ClosedLoop, int]], size: int) -> None:
    """The rendering process: sends one Replay per wanted episode."""
    from spatialvla_ft.sim.rendering import Renderer

    renderer = Renderer()
    for outcome, seed in wanted:
        channel.send(_play_one(outcome, seed, size, renderer))


def _play_one(outcome: ClosedLoop, seed: int, size: int, renderer: object) -> Replay:
    from spatialvla_ft.sim.env import TabletopEnv

    settings = outcome.settings
    camera = "front"
    env = TabletopEnv(
        outcome.robot,
        outcome.task,
        image_size=settings["image_size"],
        cameras=(camera,),
        camera_mode=settings["camera_mode"],
        distractors=settings["distractors"],
    )
    env.use(renderer)  # type: ignore[arg-type]
    env.reset(seed)
    first = env.observe()
    frames = [env.state_rgb(size, size, camera)]
    success = False
    for action in outcome.traces[seed]:
        success = env.step(np.array(action)).success
        frames.append(env.state_rgb(size, size, camera))
    recorded = next(result for result in outcome.results if result.seed == seed)
    return Replay(
        seed=seed,
        instruction=first.instruction,
        success=success,
        as_recorded=(success, env.steps) == (recorded.success, recorded.steps),
        frames=np.stack(frames),
        image=first.images[camera],
        depth=first.depth[camera],
        intrinsics=first.intrinsics[camera],
        control_hz=env.robot.control_hz,
    )
