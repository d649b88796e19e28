"""Recording in processes of its own: Mesa's software renderer and TensorFlow crash one another."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.recording import Episode, record_episode
from spatialvla_ft.sim.rendering import Renderer

QUEUE_LENGTH = 16
SPARE_FAILURES = 20


@dataclass(frozen=True)
class Plan:
    """What to record.

    Attributes:
        robot: name of the robot.
        tasks: names; attempt i does task i modulo their number.
        seed: attempt i uses seed + i.
        action_noise: of the executed actions, as a share of the largest step.
        image_size, cameras, camera_mode, distractors: of the environments.
    """

    robot: str
    tasks: tuple[str, ...]
    seed: int = 0
    action_noise: float = 0.0
    image_size: int = 64
    cameras: tuple[str, ...] = ("front",)
    camera_mode: str = "fixed"
    distractors: int = 0

    def environments(self, renderer: Renderer | None = None) -> list[TabletopEnv]:
        """One environment per task; ValueError for what is not allowed. Nothing is rendered yet."""
        return [
            TabletopEnv(
                self.robot,
                task,
                image_size=self.image_size,
                cameras=self.cameras,
                camera_mode=self.camera_mode,
                distractors=self.distractors,
                renderer=renderer,
            )
            for task in self.tasks
        ]


@dataclass
class Tally:
    """What a recording has come to so far."""

    episodes: int = 0
    steps: int = 0
    failed: int = 0

    @property
    def attempted(self) -> int:
        """Episodes tried."""
        return self.episodes + self.failed


def record_episodes(plan: Plan, count: int, tally: Tally, workers: int = 1) -> Iterator[Episode]:
    """`count` successful episodes in the order of their seeds, whatever the number of workers.

    Failures are counted in `tally`, which is kept up to date. RuntimeError if more fail than
    succeed, or if a worker dies.
    """
    context = multiprocessing.get_context("spawn")
    queues = [context.Queue(QUEUE_LENGTH) for _ in range(workers)]
    processes = [
        context.Process(target=_work, args=(plan, index, workers, queues[index]), daemon=True)
        for index in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        while tally.episodes < count:
            worker = tally.attempted % workers
            episode = _next(queues[worker], processes[worker])
            if episode is None:
                tally.failed += 1
                if tally.failed > count + SPARE_FAILURES:
                    raise RuntimeError(
                        f"action_noise: got {plan.action_noise}; the expert failed {tally.failed} "
                        f"of {tally.attempted} episodes of {list(plan.tasks)}; use less noise"
                    )
                continue
            tally.episodes += 1
            tally.steps += len(episode.actions)
            yield episode
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        for channel in queues:
            channel.close()


def _next(channel: Any, process: Any) -> Episode | None:
    """The worker's next result; RuntimeError with its traceback if it failed."""
    while True:
        try:
            result = channel.get(timeout=5.0)
        except queue.Empty:
            if not process.is_alive():
                raise RuntimeError(
                    f"a recording process died with exit code {process.exitcode}"
                ) from None
            continue
        if isinstance(result, str):
            raise RuntimeError(f"a recording process failed:\n{result}")
        return result


def _work(plan: Plan, index: int, workers: int, channel: Any) -> None:
    """Attempts index, index + workers, ... for ever; the parent ends the process."""
    try:
        envs = plan.environments(Renderer())
        attempt = index
        while True:
            env = envs[attempt % len(envs)]
            channel.put(record_episode(env, plan.seed + attempt, plan.action_noise))
            attempt += workers
    except Exception:
        channel.put(traceback.format_exc())
