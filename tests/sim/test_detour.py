"""The task with a post in the way: two ways round it, and none through it."""

from __future__ import annotations

import numpy as np
import pytest

from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.expert import expert, expert_action, side_of
from spatialvla_ft.sim.layout import POST_JITTER, POST_WAY, sample_layout
from spatialvla_ft.sim.pool import EpisodeResult
from spatialvla_ft.sim.recorder import Plan
from spatialvla_ft.sim.robots import ROBOTS, get_robot
from spatialvla_ft.sim.tasks import HIT_DISTANCE, PLAIN, TASKS, check_way, get_task

SEEDS = range(8)


@pytest.fixture(params=sorted(ROBOTS))
def env(request):
    return TabletopEnv(request.param, "detour", distractors=(0, 1, 1, 2, 2))


def run(env, seed, act):
    """The result, and the tool's way, (steps, 2)."""
    env.reset(seed)
    way = [env.state().tool[:2]]
    while not env.done:
        result = env.step(env.clip(act(env)))
        way.append(env.state().tool[:2])
    return result, np.array(way)


def side_taken(env, way):
    """+1 where the tool passed the post on the left of the straight way."""
    start, block = way[0], env.state().blocks[0].position[:2]
    ahead, offset = block - start, way - env.layout.post
    at = np.argmin(np.linalg.norm(offset, axis=1))
    return np.sign(ahead[0] * offset[at, 1] - ahead[1] * offset[at, 0])


@pytest.mark.parametrize(("way", "side"), [("left", 1), ("right", -1)])
def test_experts_pass_on_their_side(env, way, side):
    for seed in SEEDS:
        result, taken = run(env, seed, lambda e: expert(e, way))
        assert result.success
        assert not result.collided
        assert side_taken(env, taken) == side


def test_either_takes_both_sides_and_the_same_one_again(env):
    sides = [side_of("either", seed) for seed in range(200)]
    assert 70 < sides.count(1) < 130
    assert sides == [side_of(None, seed) for seed in range(200)]
    for seed in SEEDS:
        result, taken = run(env, seed, expert)
        assert result.success
        assert side_taken(env, taken) == side_of("either", seed)


def test_the_mean_of_both_ways_hits_the_post(env):
    """What a policy does that has learnt to go between them."""

    def mean(e):
        both = [expert_action(e.robot, e.task, e.state(), side) for side in (1, -1)]
        return np.mean(both, axis=0)

    hits = [run(env, seed, mean)[0].collided for seed in SEEDS]
    assert np.mean(hits) > 0.7


def test_the_straight_way_hits_the_post(env):
    straight = get_task("touch")
    for seed in SEEDS:
        result, _ = run(env, seed, lambda e: expert_action(e.robot, straight, _no_post(e.state())))
        assert result.collided
        assert result.done
        assert not result.success


def _no_post(state):
    from dataclasses import replace

    return replace(state, post=None)


@pytest.mark.parametrize("robot", sorted(ROBOTS))
def test_layouts_have_the_post_between(robot):
    for seed in range(100):
        rng = np.random.default_rng([seed, 7])
        layout = sample_layout(get_robot(robot), get_task("detour"), seed % 4, rng)
        way = np.array(layout.blocks[0].position) - layout.tool[:2]
        assert POST_WAY[0] <= np.linalg.norm(way) <= POST_WAY[1]
        off = np.array(layout.post) - layout.tool[:2] - way / 2
        assert np.linalg.norm(off) <= POST_JITTER + 1e-9
        others = np.array([b.position for b in layout.blocks]) - layout.post
        assert np.linalg.norm(others, axis=1).min() > HIT_DISTANCE + 0.03


def test_other_scenes_have_no_post(env):
    assert TabletopEnv(env.robot, "touch").model.geom("table").id >= 0
    with pytest.raises(KeyError):
        TabletopEnv(env.robot, "touch").model.geom("post")
    assert [name for name in TASKS if name not in PLAIN] == ["detour"]


@pytest.mark.parametrize(
    ("given", "tasks", "said"),
    [
        ("up", ["detour"], r"expert: got 'up', allowed are \['left', 'right', 'either'\]"),
        ("left", ["touch"], "says how to pass a post, and touch has none; leave it out, or"),
    ],
)
def test_ways_that_there_are_not(given, tasks, said):
    with pytest.raises(ValueError, match=said):
        check_way(given, tasks)
    with pytest.raises(ValueError, match=said):
        Plan("robot_b", tuple(tasks), way=given).check()


def test_too_many_blocks_are_refused():
    with pytest.raises(ValueError, match=r"allowed for 'detour' are 0 to 3; room is left"):
        TabletopEnv("robot_a", "detour", distractors=4)


def test_the_card_says_which_expert():
    assert Plan("robot_b", ("detour",), way="left").recorded(5)["expert"] == "left"
    assert "expert" not in Plan("robot_b", ("touch",)).recorded(5)


def test_collisions_are_counted_and_older_results_still_read():
    results = [
        EpisodeResult(0, "touch", True, False, 5),
        EpisodeResult(1, "touch", False, False, 3, True),
    ]
    found = ClosedLoop(
        policy="p", robot="robot_b", task="detour", episodes=2, successes=1, wrong_objects=0,
        mean_steps=4.0, settings={}, results=results, traces={},
    )  # fmt: skip
    written = found.to_dict()
    assert written["collisions"] == found.collisions == 1
    for result in written["results"]:
        del result["collided"]  # as it was before there were posts
    del written["collisions"]
    assert ClosedLoop.from_dict(written).collisions == 0
