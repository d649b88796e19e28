"""The same scene with the other word: policies that read, and policies that do not."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from spatialvla_ft.evaluation.closed_loop import run_closed_loop
from spatialvla_ft.evaluation.outcome import ClosedLoop, wilson_interval
from spatialvla_ft.policy.policies import MeanAction, NoMotion
from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.robots import get_robot

ROBOT, COUNTS = "robot_b", (0, 1, 2)
SEEDS = range(31, 40)
"""Three scenes without a distractor, three with one, three with two."""


class Goer:
    """Knows where the blocks stand, and goes to the one that `choose` names.

    Args:
        choose: (colours of the scene in their own order, instruction) -> colour.
    """

    name = "goer"
    cameras = ()

    def __init__(self, choose):
        self.choose = choose
        self.env = TabletopEnv(ROBOT, "touch", distractors=COUNTS)
        self.scenes = {}

    def act(self, view):
        robot = get_robot(ROBOT)
        actions = np.zeros((len(view.episodes), 7))
        for i, (seed, words) in enumerate(zip(view.episodes, view.instructions, strict=True)):
            if seed not in self.scenes:
                self.env.reset(seed)
                self.scenes[seed] = {b.colour: b for b in self.env.layout.blocks}
            blocks = self.scenes[seed]
            block = blocks[self.choose(sorted(blocks), words)]
            here = view.observations[i].proprio[:3]
            top = block.riser + 2 * block.half_size[2] - robot.base_position[2]
            way = np.array([*block.position, top]) - here
            away = np.linalg.norm(way[:2])
            way[2] += min(0.09, 0.9 * max(0.0, away - 0.015))
            actions[i, :3] = np.clip(0.4 * way, -robot.max_translation, robot.max_translation)
        return actions


def reads(colours, words):
    (named,) = [colour for colour in colours if colour in words]
    return named


def reads_nothing(colours, words):
    return colours[0]


def run(policy, seeds=SEEDS, **options):
    given = {"distractors": COUNTS, "swap": True, "parallel": 9, "image_size": 16, **options}
    return run_closed_loop(policy, ROBOT, "touch", seeds, **given)


@pytest.fixture(scope="module")
def reading():
    told = []
    return run(Goer(reads), on_episodes=told.append), told


def test_a_policy_that_reads_follows_both_words(reading):
    outcome, told = reading
    swap = outcome.swap
    assert (outcome.successes, outcome.wrong_objects) == (9, 0)
    assert (swap.episodes, swap.successes, swap.wrong_objects, swap.followed) == (6, 6, 0, 6)
    assert (swap.follows.rate, swap.follows.interval) == (1.0, wilson_interval(6, 6))
    assert told[-1] == 15
    assert told == sorted(told)
    assert swap.chance == pytest.approx((3 * (1 / 4) + 3 * (1 / 9)) / 6)


def test_the_scene_is_the_same_and_the_word_another(reading):
    outcome, _ = reading
    first = {result.seed: result for result in outcome.results}
    assert sorted(first) == list(SEEDS)
    assert [r.seed for r in outcome.swap.results] == [s for s in SEEDS if COUNTS[s % 3]]
    env = TabletopEnv(ROBOT, "touch", distractors=COUNTS)
    for result in outcome.swap.results:
        env.reset(result.seed)
        colours = [block.colour for block in env.layout.blocks]
        assert first[result.seed].instruction == f"touch the {colours[0]} block"
        assert result.instruction == f"touch the {colours[1]} block"
    traces = outcome.swap.traces
    assert set(traces) == {result.seed for result in outcome.swap.results}
    assert {s: len(t) for s, t in traces.items()} == {
        result.seed: result.steps for result in outcome.swap.results
    }


def test_a_policy_that_does_not_read_follows_none():
    outcome = run(Goer(reads_nothing))
    swap = outcome.swap
    assert swap.followed == 0
    assert swap.follows.interval == wilson_interval(0, 6)
    assert swap.wrong_objects + swap.successes == 6
    assert swap.wrong_objects >= 3
    assert outcome.wrong_objects > 0


@pytest.mark.parametrize("policy", [NoMotion(), MeanAction(np.full(7, 0.001))])
def test_baselines_take_the_test_too(policy):
    outcome = run(policy, SEEDS[:3])
    assert (outcome.swap.episodes, outcome.swap.followed) == (2, 0)
    assert [o.seed for o in outcome.swap.results] == [SEEDS[0], SEEDS[1]]


def test_without_the_test_there_is_none():
    assert run(NoMotion(), SEEDS[:1], swap=False).swap is None


@pytest.mark.parametrize(
    ("task", "counts", "cure"),
    [
        ("touch", 0, r"distractors \[0\] none of the 9 scenes .* 1 or a list as 0,1,1,2,2"),
        ("touch", (), r"distractors \[\] none of the 9 scenes"),
        ("place_left_of", 2, r"'place_left_of' names two blocks; .*: touch, pick"),
    ],
)
def test_where_there_is_no_other_word(task, counts, cure):
    with pytest.raises(ValueError, match=cure):
        run_closed_loop(NoMotion(), ROBOT, task, SEEDS, distractors=counts, swap=True)


def test_scenes_without_a_distractor_alone_are_an_error():
    with pytest.raises(ValueError, match="none of the 1 scenes"):
        run(NoMotion(), [33])


# -------------------------------------------------------------------- as JSON


def content_of(outcome):
    return json.loads(json.dumps(outcome.to_dict()))


def test_round_trip(reading):
    outcome, _ = reading
    content = content_of(outcome)
    assert content["settings"]["distractors"] == [0, 1, 2]
    assert content["wrong_object_interval"] == list(wilson_interval(0, 9))
    assert content["swap"]["followed_rate"] == 1.0
    assert content["swap"]["followed_interval"] == list(wilson_interval(6, 6))
    assert content["swap"]["wrong_object_rate"] == 0.0
    assert ClosedLoop.from_dict(content) == outcome


def test_files_of_before_load(reading):
    content = content_of(reading[0])
    del content["swap"], content["wrong_object_interval"]
    content["settings"]["distractors"] = 0
    old = ClosedLoop.from_dict(content)
    assert old.swap is None
    assert old.settings["distractors"] == [0]
    assert content_of(old)["swap"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"successes": 5}, "swap: it says 5 of 6 episodes succeeded, but lists 6 of 6"),
        ({"wrong_objects": 1}, "swap: it says 1 episodes ended at a wrong object, but lists 0"),
        ({"followed": 5}, "swap: it says 5 scenes followed both words, but lists 6"),
        ({"followed": 7}, "swap: 7 followed and 6 solved of 6 scenes cannot be"),
        ({"traces": {"99": []}}, r"swap: traces of episodes \[99\] without their results"),
        ({"chance": ...}, "no closed-loop result"),
        ({"results": [{"seed": 3}]}, "no closed-loop result"),
    ],
)
def test_contradictions_are_refused(reading, change, said):
    content = content_of(reading[0])
    content["swap"] = {**content["swap"], **change}
    content["swap"] = {name: v for name, v in content["swap"].items() if v is not ...}
    with pytest.raises(ValueError, match=said):
        ClosedLoop.from_dict(content)


def test_a_swapped_scene_without_its_own_is_refused(reading):
    outcome, _ = reading
    other = dataclasses.replace(outcome.swap.results[0], seed=7)
    results = [other, *outcome.swap.results[1:]]
    content = content_of(outcome)
    content["swap"]["results"] = [dataclasses.asdict(result) for result in results]
    content["swap"]["traces"] = {}
    with pytest.raises(ValueError, match=r"swap: scenes \[7\] were not evaluated"):
        ClosedLoop.from_dict(content)
