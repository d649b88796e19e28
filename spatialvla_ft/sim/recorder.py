"""Recording in processes of its own: Mesa's software renderer and TensorFlow crash one another.

Simulating processes draw and hold no TensorFlow; the one that writes holds TensorFlow and neither
draws nor loads a graphics library; the caller's, which hands episodes on, loads neither.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialvla_ft.processes import Channel, Worker
from spatialvla_ft.sim.layout import check_options
from spatialvla_ft.sim.pool import Episode
from spatialvla_ft.sim.rlds import VERSION, dataset_card, write_card, write_rlds
from spatialvla_ft.sim.robots import get_robot
from spatialvla_ft.sim.tasks import Way, check_way, get_task

if TYPE_CHECKING:
    from spatialvla_ft.sim.env import TabletopEnv

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
        way: how the expert passes a post; None where the tasks have none, or for either.
    """

    robot: str
    tasks: tuple[str, ...]
    seed: int = 0
    action_noise: float = 0.0
    image_size: int = 64
    cameras: tuple[str, ...] = ("front",)
    camera_mode: str = "fixed"
    distractors: int | tuple[int, ...] = 0
    way: Way | None = None

    def check(self) -> None:
        """ValueError for what is not allowed; nothing is loaded for it."""
        check_way(self.way, self.tasks)
        for task in self.tasks:
            check_options(
                get_robot(self.robot),
                get_task(task),
                self.image_size,
                self.cameras,
                self.camera_mode,
                self.distractors,
                other_word=False,
            )

    def environments(self) -> list[TabletopEnv]:
        """One environment per task; ValueError for what is not allowed. Nothing is rendered yet."""
        from spatialvla_ft.sim.env import TabletopEnv

        return [
            TabletopEnv(
                self.robot,
                task,
                image_size=self.image_size,
                cameras=self.cameras,
                camera_mode=self.camera_mode,
                distractors=self.distractors,
            )
            for task in self.tasks
        ]

    @property
    def distractor_counts(self) -> list[int]:
        """The numbers of distractors that take turns."""
        return [self.distractors] if isinstance(self.distractors, int) else list(self.distractors)

    def recorded(self, attempted: int) -> dict[str, Any]:
        """What the dataset's card says of how so many attempts were made."""
        return {
            "robot": self.robot,
            "tasks": list(self.tasks),
            "camera_mode": self.camera_mode,
            "cameras": list(self.cameras),
            "image_size": self.image_size,
            "distractors": self.distractor_counts,
            "action_noise": self.action_noise,
            "seeds": [self.seed, self.seed + attempted - 1],
            **({} if self.way is None else {"expert": self.way}),
        }

    def description(self) -> str:
        """One sentence for the dataset's own description."""
        blocks = "/".join(map(str, self.distractor_counts))
        return (
            f"{self.robot}, {', '.join(self.tasks)}: expert demonstrations in simulation, "
            f"camera {self.camera_mode}, action noise {self.action_noise}, "
            f"{blocks} distractors, seed {self.seed}"
            f"{'' if self.way is None else f', passing a post on the way {self.way}'}."
        )


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


def record_episodes(
    plan: Plan, count: int, tally: Tally, workers: int = 1
) -> Generator[Episode, None, None]:
    """`count` successful episodes in the order of their seeds, whatever the number of workers.

    Failures are counted in `tally`, which is kept up to date. ValueError if more fail than
    succeed.
    """
    role = "a process that simulates and draws"
    processes = [
        Worker(f"{__name__}:simulate", plan, i, workers, role=role, draws=True)
        for i in range(workers)
    ]
    try:
        while tally.episodes < count:
            episode: Episode | None = processes[tally.attempted % workers].recv()
            if episode is None:
                tally.failed += 1
                if tally.failed > count + SPARE_FAILURES:
                    raise ValueError(
                        f"action_noise: got {plan.action_noise}; the expert failed {tally.failed} "
                        f"of {tally.attempted} episodes of {list(plan.tasks)}; use less noise"
                    )
                continue
            tally.episodes += 1
            tally.steps += len(episode.actions)
            yield episode
    finally:
        for process in processes:
            process.close()


def simulate(channel: Channel, plan: Plan, index: int, workers: int) -> None:
    """A simulation process: attempts index, index + workers, ... until the other side closes."""
    from spatialvla_ft.sim.recording import record_episode
    from spatialvla_ft.sim.rendering import Renderer

    envs = plan.environments()
    renderer = Renderer()
    for env in envs:
        env.use(renderer)
    for attempt in itertools.count(index, workers):
        env = envs[attempt % len(envs)]
        channel.send(record_episode(env, plan.seed + attempt, plan.action_noise, plan.way))


def record_dataset(
    plan: Plan, *, episodes: int, out: Path, name: str, workers: int = 1
) -> Iterator[Tally]:
    """Record `episodes` episodes and write `out/name/1.0.0` with its card; yields progress.

    The caller may use torch, TensorFlow or OpenGL: this process only hands episodes on.

    Raises:
        ValueError: something that is not allowed, or an expert that fails too often.
        WorkerError: a process failed or died; says which and, of a signal, the likely cause.
    """
    plan.check()  # finds mistakes before anything is started
    tally = Tally()
    role = "the process that writes the dataset"
    with (
        Worker(f"{__name__}:write", plan, out, name, role=role) as writer,
        contextlib.closing(record_episodes(plan, episodes, tally, workers)) as recorded,
    ):
        for episode in recorded:
            writer.send(episode)
            yield replace(tally)
        writer.send(None)
        writer.send(tally.attempted)
        writer.recv()
    yield replace(tally)


def write(channel: Channel, plan: Plan, out: Path, name: str) -> None:
    """The writing process: takes episodes, None, how many were attempted; answers with the path."""
    path = write_rlds(
        iter(channel.recv, None),
        out=out,
        name=name,
        cameras=plan.cameras,
        image_size=plan.image_size,
        description=plan.description(),
    )
    recorded = plan.recorded(channel.recv())
    card = dataset_card(get_robot(plan.robot), plan.cameras, VERSION, recorded)
    write_card(path / "card.yaml", name, card)
    channel.send(path)
