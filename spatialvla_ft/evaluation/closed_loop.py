"""Closed loop: let a policy act in simulation and count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..data.sample import Observation
from ..sim.card import SLOTS, proprio_of
from ..sim.pool import Batch, SimPool
from .outcome import ClosedLoop
from .policies import Policy, View

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
    distractors: int = 0,
    traced: int = 6,
    on_episodes: Callable[[int], None] | None = None,
) -> ClosedLoop:
    """Run one episode per seed; `on_episodes` is told how many have ended.

    The actions of the first `traced` episodes are kept.
    """
    settings = {
        "image_size": image_size,
        "camera_mode": camera_mode,
        "distractors": distractors,
    }
    unknown = sorted(set(policy.cameras) - set(CAMERA_OF_SLOT))
    if unknown:
        raise ValueError(
            f"the policy looks through {unknown}; the simulation has {sorted(CAMERA_OF_SLOT)}"
        )
    pool = SimPool(
        robot,
        task,
        list(seeds),
        workers=workers,
        parallel=parallel,
        image_size=image_size,
        cameras=tuple(CAMERA_OF_SLOT[slot] for slot in policy.cameras),
        camera_mode=camera_mode,
        distractors=distractors,
    )
    traces: dict[int, list[list[float]]] = {int(seed): [] for seed in seeds[:traced]}
    with pool:
        while not pool.done:
            batch = pool.observe()
            actions = policy.act(view_of(batch, policy.cameras))
            for seed, action in zip(batch.seeds.tolist(), actions, strict=True):
                if seed in traces:
                    traces[seed].append(action.tolist())
            pool.step(actions)
            if on_episodes is not None:
                on_episodes(len(pool.results))
        results = list(pool.results)
    return ClosedLoop(
        policy=policy.name,
        robot=robot,
        task=task,
        episodes=len(results),
        successes=sum(result.success for result in results),
        wrong_objects=sum(result.wrong_object for result in results),
        mean_steps=sum(result.steps for result in results) / len(results),
        settings={**settings, "first_seed": int(seeds[0])},
        results=results,
        traces=traces,
    )
