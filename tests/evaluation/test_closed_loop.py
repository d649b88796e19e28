"""Episodes counted: by a pool that is made up, and two real ones in simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from spatialvla_ft.evaluation import closed_loop
from spatialvla_ft.evaluation.closed_loop import run_closed_loop, view_of
from spatialvla_ft.evaluation.outcome import wilson_interval
from spatialvla_ft.policy.policies import NoMotion
from spatialvla_ft.sim.pool import Batch, EpisodeResult


def batch_of(seeds, step):
    count = len(seeds)
    return Batch(
        seeds=np.array(seeds),
        steps=np.full(count, step),
        images={"front": np.full((count, 4, 5, 3), step, np.uint8)},
        depth={"front": np.full((count, 4, 5), 0.5, np.float32)},
        intrinsics={"front": np.repeat(np.diag([4.0, 5, 1])[None], count, 0)},
        extrinsics={"front": np.repeat(np.eye(4)[None], count, 0) * (1 + step)},
        state=np.tile(np.array([0, 0, 0, 0, 0, 0, 0.9], np.float32), (count, 1)),
        instructions=tuple(f"do {seed}" for seed in seeds),
    )


class FakePool:
    """Episode `seed` lasts 1 + seed % 3 steps; even ones succeed, 3 ends at the wrong block."""

    def __init__(self, robot, task, seeds, **options):
        self.running, self.step_number, self.results = list(seeds), 0, []
        FakePool.options = options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        FakePool.closed = True

    @property
    def done(self):
        return not self.running

    def observe(self):
        return batch_of(self.running, self.step_number)

    def step(self, actions):
        assert actions.shape == (len(self.running), 7)
        self.step_number += 1
        for seed in [s for s in self.running if 1 + s % 3 == self.step_number]:
            self.running.remove(seed)
            result = EpisodeResult(seed, f"do {seed}", seed % 2 == 0, seed == 3, self.step_number)
            self.results.append(result)


class Counting:
    name = "counting"
    cameras = ("primary",)

    def __init__(self):
        self.views = []

    def act(self, view):
        self.views.append(view)
        return np.array([[e, len(self.views), 0, 0, 0, 0, 1.0] for e in view.episodes])


def test_counts_and_traces(monkeypatch):
    monkeypatch.setattr(closed_loop, "SimPool", FakePool)
    policy, told = Counting(), []
    result = run_closed_loop(
        policy, "robot_a", "touch", [2, 3, 4, 5], traced=2, distractors=1, on_episodes=told.append
    )
    # lengths: 2 -> 3, 3 -> 1, 4 -> 2, 5 -> 3
    assert (result.episodes, result.successes, result.wrong_objects) == (4, 2, 1)
    assert result.mean_steps == 9 / 4
    assert result.rate == 0.5
    assert result.interval == wilson_interval(2, 4)
    assert told == [1, 2, 4]
    assert FakePool.closed
    assert FakePool.options["distractors"] == (1,)
    assert FakePool.options["cameras"] == ("front",)
    assert set(result.traces) == {2, 3}
    assert [row[:2] for row in result.traces[2]] == [[2, 1], [2, 2], [2, 3]]
    assert len(result.traces[3]) == 1
    assert [view.episodes for view in policy.views] == [(2, 3, 4, 5), (2, 4, 5), (2, 5)]
    assert policy.views[0].fresh.all()
    assert not policy.views[1].fresh.any()
    content = json.loads(json.dumps(result.to_dict(), default=list))
    assert content["rate"] == 0.5
    assert content["wrong_object_rate"] == 0.25
    assert content["settings"]["first_seed"] == 2


def test_a_view_is_what_the_policy_looks_through():
    view = view_of(batch_of([8, 9], 3), ("primary",))
    assert view.episodes == (8, 9)
    seen = view.observations[1]
    assert seen.images["primary"][0, 0, 0] == 3
    np.testing.assert_array_equal(seen.intrinsics["primary"], np.diag([4, 5, 1]))
    np.testing.assert_array_equal(seen.extrinsics["primary"], 4 * np.eye(4))
    np.testing.assert_allclose(seen.proprio, [0, 0, 0, 0, 0, 0, 0, 0.9])
    np.testing.assert_allclose(view.gripper, 0.9)
    with pytest.raises(KeyError, match="wrist"):
        view_of(batch_of([8], 0), ("wrist",))
    assert view_of(batch_of([8], 0), ()).observations[0].images == {}


def test_a_camera_that_the_simulation_has_not():
    policy = Counting()
    policy.cameras = ("primary", "left_shoulder")
    with pytest.raises(ValueError, match=r"looks through \['left_shoulder'\]; the simulation has"):
        run_closed_loop(policy, "robot_a", "touch", [2])


def test_two_episodes_in_simulation_without_motion():
    result = run_closed_loop(
        NoMotion(), "robot_b", "touch", [1, 2], image_size=16, parallel=2, traced=1
    )
    assert result.episodes == 2
    assert sorted(r.seed for r in result.results) == [1, 2]
    assert result.successes == 0
    assert len(result.traces[1]) == next(r.steps for r in result.results if r.seed == 1)
    assert not np.array(result.traces[1])[:, :6].any()
