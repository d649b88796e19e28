"""Closed loop: let a policy act in simulation and count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.sample import Observation
from ..policy.policies import Policy, View
from ..sim.pool import Batch, EpisodeResult, SimPool
from ..sim.rlds import SLOTS, proprio_of
from ..sim.tasks import TASKS, get_task
from .outcome import ClosedLoop, Swap, followed, other_word

CAMERA_OF_SLOT = {slot: camera for camera, slot in SLOTS.items()}
"""Camera slots of datasets: names of the simulation's cameras."""


def view_of(batch: Batch, cameras: Sequence[str]) -> View:
    """What a policy with these cameras (slots) is shown of a batch of episodes."""

    def of_each(values: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
        return {slot: values[CAMERA_OF_SLOT[slot]][row] for slot in cameras}

    proprio = proprio_of(batch.state)
    return View(
        episodes=tuple(int(seed) for seed in batch.seeds),
        fresh=batch.steps == 0,
        observations=tuple(
            Observation(
                images=of_each(batch.images, row),
                depth=of_each(batch.depth, row),
                intrinsics=of_each(batch.intrinsics, row),
                extrinsics=of_each(batch.extrinsics, row),
                proprio=proprio[row],
            )
            for row in range(len(batch))
        ),
        gripper=batch.state[:, 6],
        instructions=batch.instructions,
    )


def run_closed_loop(
    policy: Policy,
    robot: str,
    task: str,
    seeds: Sequence[int],
    *,
    workers: int = 1,
    parallel: int = 16,
    image_size: int = 64,
    camera_mode: str = "fixed",
    distractors: int | Sequence[int] = 0,
    swap: bool = False,
    traced: int = 10,
    on_episodes: Callable[[int], None] | None = None,
) -> ClosedLoop:
    """Run one episode per seed; `on_episodes` is told how many have ended.

    Args:
        policy: acts.
        robot: name.
        task: name.
        seeds: one episode each.
        workers: processes of the simulation.
        parallel: episodes that run at the same time.
        image_size: pixels a side.
        camera_mode: "fixed" or "random".
        distractors: blocks that the task does not name; of several numbers, the episode of seed s
            has the one at place s modulo their count.
        swap: afterwards run the same scenes with the other word, those that have a distractor.
        traced: the actions of so many episodes, the first ones, are kept.
        on_episodes: told the number of episodes that have ended, those with the other word too.

    Raises:
        ValueError: an option that does not fit, or `swap` where there is no other word to say.
    """
    counts = (distractors,) if isinstance(distractors, int) else tuple(distractors)
    scenes = scenes_to_swap(task, seeds, counts) if swap else []
    unknown = sorted(set(policy.cameras) - set(CAMERA_OF_SLOT))
    if unknown:
        raise ValueError(
            f"the policy looks through {unknown}; the simulation has {sorted(CAMERA_OF_SLOT)}"
        )
    options: dict[str, Any] = {
        "workers": workers,
        "parallel": parallel,
        "image_size": image_size,
        "cameras": tuple(CAMERA_OF_SLOT[slot] for slot in policy.cameras),
        "camera_mode": camera_mode,
    }
    kept = {int(seed) for seed in seeds[:traced]}
    tell = on_episodes or (lambda count: None)
    pool = SimPool(robot, task, list(seeds), distractors=counts, **options)
    results, traces = _play(pool, policy, kept, tell)
    swapped = None
    if scenes:
        pool = SimPool(robot, task, scenes, **other_word(counts), **options)
        other, other_traces = _play(pool, policy, kept, lambda n: tell(len(results) + n))
        swapped = Swap(
            **_counts(other),
            followed=followed(results, other),
            chance=float(np.mean([(1 + counts[s % len(counts)]) ** -2.0 for s in scenes])),
            results=other,
            traces=other_traces,
        )
    return ClosedLoop(
        policy=policy.name,
        robot=robot,
        task=task,
        **_counts(results),
        mean_steps=sum(result.steps for result in results) / len(results),
        settings={
            "image_size": image_size,
            "camera_mode": camera_mode,
            "distractors": list(counts),
            "first_seed": int(seeds[0]),
        },
        results=results,
        traces=traces,
        swap=swapped,
    )


def scenes_to_swap(task: str, seeds: Sequence[int], distractors: Sequence[int]) -> list[int]:
    """Seeds whose scene has a distractor that the instruction could name instead.

    Raises:
        ValueError: there is none, or the task also names a block as reference.
    """
    if get_task(task).places:
        able = ", ".join(name for name, one in TASKS.items() if not one.places)
        raise ValueError(
            f"the swap test says another block's colour, and {task!r} names two blocks; choose a "
            f"task that names one: {able}"
        )
    many = len(distractors)
    scenes = [int(seed) for seed in seeds if many and distractors[seed % many] > 0]
    if not scenes:
        raise ValueError(
            f"the swap test needs a second block to name, and with distractors "
            f"{list(distractors)} none of the {len(seeds)} scenes has one; ask for distractors, "
            "1 or a list as 0,1,1,2,2"
        )
    return scenes


def _play(
    pool: SimPool, policy: Policy, kept: set[int], tell: Callable[[int], None]
) -> tuple[list[EpisodeResult], dict[int, list[list[float]]]]:
    """All episodes of a pool, which is closed then, and the actions of those in `kept`."""
    traces: dict[int, list[list[float]]] = {}
    with pool:
        while not pool.done:
            batch = pool.observe()
            actions = policy.act(view_of(batch, policy.cameras))
            for seed, action in zip(batch.seeds.tolist(), actions, strict=True):
                if seed in kept:
                    traces.setdefault(seed, []).append(action.tolist())
            pool.step(actions)
            tell(len(pool.results))
        return list(pool.results), {seed: traces[seed] for seed in sorted(traces)}


def _counts(results: Sequence[EpisodeResult]) -> dict[str, int]:
    return {
        "episodes": len(results),
        "successes": sum(result.success for result in results),
        "wrong_objects": sum(result.wrong_object for result in results),
    }
