"""Closed-loop evaluation: environments in processes without torch, a policy in this one.

with SimPool("robot_a", "touch", seeds=range(100), workers=2) as pool:
    while not pool.done:
        batch = pool.observe()
        pool.step(policy(batch))
rate = sum(result.success for result in pool.results) / len(pool.results)

What a demonstration is once it is recorded; the process that writes it needs no simulator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, UInt8

from spatialvla_ft.processes import Channel, Worker
from spatialvla_ft.sim.robots import Robot, get_robot
from spatialvla_ft.sim.state import Observation
from spatialvla_ft.sim.tasks import get_task


@dataclass(frozen=True)
class Batch:
    """The observations of all running episodes, in a fixed order until the next step.

    Attributes:
        seeds: (B,) which episode each row is.
        steps: (B,) actions executed so far in each episode; 0 right after its reset.
        images, depth, intrinsics, extrinsics, state, instructions: as in `Observation`, stacked.
    """

    seeds: Int64[np.ndarray, " B"]
    steps: Int64[np.ndarray, " B"]
    images: dict[str, UInt8[np.ndarray, "B H W 3"]]
    depth: dict[str, Float32[np.ndarray, "B H W"]]
    intrinsics: dict[str, Float64[np.ndarray, "B 3 3"]]
    extrinsics: dict[str, Float64[np.ndarray, "B 4 4"]]
    state: Float32[np.ndarray, "B 7"]
    instructions: tuple[str, ...]

    def __len__(self) -> int:
        """Number of running episodes."""
        return len(self.seeds)


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode ended.

    Attributes:
        seed: which episode.
        instruction: what the robot was told.
        success: the task was solved.
        wrong_object: the episode ended because a block that was not named was touched or lifted.
        steps: actions executed.
        collided: the episode ended because the hand hit the post.
    """

    seed: int
    instruction: str
    success: bool
    wrong_object: bool
    steps: int
    collided: bool = False


class SimPool:
    """Runs one episode per seed, several at a time, in worker processes.

    An episode that ends makes room for the next seed; `observe` returns the running ones only.
    """

    def __init__(
        self,
        robot: Robot | str,
        task: str,
        seeds: Sequence[int],
        *,
        workers: int = 1,
        parallel: int = 16,
        image_size: int = 64,
        cameras: Sequence[str] = ("front",),
        camera_mode: str = "fixed",
        distractors: int | Sequence[int] = 0,
        other_word: bool = False,
    ):
        """Start the workers and the first episodes.

        Args:
            robot: a robot or its name.
            task: name of the task.
            seeds: one episode each, all different.
            workers: processes.
            parallel: episodes that run at the same time, over all workers.
            image_size: pixels a side.
            cameras: which to render, "front", "wrist" or both.
            camera_mode: "fixed" or "random".
            distractors: blocks that the task does not name, as in `TabletopEnv`.
            other_word: name the first distractor instead, as in `TabletopEnv`.
        """
        self.robot = get_robot(robot) if isinstance(robot, str) else robot
        self.task = get_task(task)
        self._seeds = [int(seed) for seed in seeds]
        if not self._seeds or len(set(self._seeds)) < len(self._seeds):
            raise ValueError(f"seeds: got {self._seeds}, allowed are one or more, all different")
        if workers < 1 or parallel < 1:
            raise ValueError(f"workers, parallel: got {workers}, {parallel}, allowed are 1 or more")
        workers = min(workers, len(self._seeds), parallel)
        options = {
            "image_size": image_size,
            "cameras": tuple(cameras),
            "camera_mode": camera_mode,
            "distractors": distractors,
            "other_word": other_word,
        }
        self._results: dict[int, EpisodeResult] = {}
        self._workers: list[Worker] = []
        for index in range(workers):
            slots = len(range(index, parallel, workers))
            share = self._seeds[index::workers]
            self._workers.append(
                Worker(
                    *(f"{__name__}:work", self.robot, self.task.name, share, slots, options),
                    role="a process that simulates and draws",
                    draws=True,
                )
            )
        self._parts: list[Batch] = []
        self._receive()

    @property
    def done(self) -> bool:
        """Every episode has ended."""
        return not any(len(part) for part in self._parts)

    @property
    def results(self) -> list[EpisodeResult]:
        """The episodes that have ended, in the order of `seeds`."""
        return [self._results[seed] for seed in self._seeds if seed in self._results]

    def observe(self) -> Batch:
        """What the running episodes show now; ValueError when all have ended."""
        parts = [part for part in self._parts if len(part)]
        if not parts:
            raise ValueError("all episodes have ended; look at `done` before `observe`")
        return parts[0] if len(parts) == 1 else _join(parts)

    def step(self, actions: Float[np.ndarray, "B 7"]) -> list[EpisodeResult]:
        """One action per row of the last `observe`; returns the episodes that ended with it."""
        actions = np.asarray(actions, dtype=np.float64)
        running = sum(len(part) for part in self._parts)
        if actions.shape != (running, 7) or not np.all(np.isfinite(actions)):
            raise ValueError(
                f"actions: got shape {actions.shape}, allowed are {running} x 7 finite numbers, "
                "one row per row of observe()"
            )
        start = 0
        for worker, part in zip(self._workers, self._parts, strict=True):
            worker.send(actions[start : start + len(part)])
            start += len(part)
        return self._receive()

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> SimPool:
        """The pool itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the worker processes."""
        self.close()

    def _receive(self) -> list[EpisodeResult]:
        try:
            answers = [worker.recv() for worker in self._workers]
        except Exception:
            self.close()
            raise
        parts = [part for part, _ in answers]
        ended = [result for _, results in answers for result in results]
        self._parts = parts
        self._results.update({result.seed: result for result in ended})
        return ended


def _join(parts: Sequence[Batch]) -> Batch:
    def per_camera(field: str) -> dict[str, np.ndarray]:
        names = getattr(parts[0], field)
        return {name: np.concatenate([getattr(p, field)[name] for p in parts]) for name in names}

    return Batch(
        seeds=np.concatenate([part.seeds for part in parts]),
        steps=np.concatenate([part.steps for part in parts]),
        images=per_camera("images"),
        depth=per_camera("depth"),
        intrinsics=per_camera("intrinsics"),
        extrinsics=per_camera("extrinsics"),
        state=np.concatenate([part.state for part in parts]),
        instructions=tuple(text for part in parts for text in part.instructions),
    )


def _stack(seeds: list[int], steps: list[int], observations: list[Observation]) -> Batch:
    def per_camera(field: str) -> dict[str, np.ndarray]:
        names = getattr(observations[0], field) if observations else {}
        return {name: np.stack([getattr(o, field)[name] for o in observations]) for name in names}

    return Batch(
        seeds=np.array(seeds, np.int64),
        steps=np.array(steps, np.int64),
        images=per_camera("images"),
        depth=per_camera("depth"),
        intrinsics=per_camera("intrinsics"),
        extrinsics=per_camera("extrinsics"),
        state=np.array([o.state for o in observations], np.float32).reshape(-1, 7),
        instructions=tuple(o.instruction for o in observations),
    )


def work(
    channel: Channel,
    robot: Robot,
    task: str,
    seeds: list[int],
    slots: int,
    options: dict[str, Any],
) -> None:
    """A worker: answers every array of actions with (Batch, episodes that ended)."""
    # Imported here, so that the process with the policy needs no OpenGL.
    from spatialvla_ft.sim.env import TabletopEnv
    from spatialvla_ft.sim.rendering import Renderer

    waiting = list(seeds)
    running = [TabletopEnv(robot, task, **options) for _ in range(min(slots, len(waiting)))]
    renderer = Renderer()
    for env in running:
        env.use(renderer)
        env.reset(waiting.pop(0))
    ended: list[EpisodeResult] = []
    while True:
        seeds_now = [env.seed for env in running]
        steps_now = [env.steps for env in running]
        channel.send((_stack(seeds_now, steps_now, [env.observe() for env in running]), ended))
        actions = channel.recv()
        ended = []
        for env, action in zip(list(running), actions, strict=True):
            result = env.step(action)
            if not result.done:
                continue
            ended.append(
                EpisodeResult(
                    seed=env.seed,
                    instruction=env.instruction,
                    success=result.success,
                    wrong_object=result.wrong_object,
                    steps=result.steps,
                    collided=result.collided,
                )
            )
            if waiting:
                env.reset(waiting.pop(0))
            else:
                running.remove(env)


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
