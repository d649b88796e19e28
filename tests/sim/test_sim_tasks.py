from dataclasses import replace

import numpy as np
import pytest

from spatialvla_ft.sim.state import BlockState, WorldState
from spatialvla_ft.sim.tasks import TASKS, is_success, is_wrong_object


def block(colour, position, *, yaw=0.0, **changes):
    cos, sin = np.cos(yaw), np.sin(yaw)
    still = BlockState(
        colour=colour,
        position=np.array(position, float),
        rotation=np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]),
        half_size=np.array([0.035, 0.02, 0.02]),
        speed=0.0,
        turning=0.0,
        fingers=0,
        robot_contact=False,
        supported=True,
        start_height=0.02,
        riser=0.0,
    )
    return replace(still, **changes)


def world(*blocks, tool=(0.3, 0.0, 0.4)):
    return WorldState(np.array(tool), np.eye(3), 1.0, blocks)


REFERENCE = block("blue", (0.5, 0.0, 0.02), yaw=0.4)
PLACES = {
    "place_left_of": (0.5, 0.13, 0.02),
    "place_right_of": (0.5, -0.13, 0.02),
    "place_in_front_of": (0.37, 0.0, 0.02),
    "place_behind": (0.63, 0.0, 0.02),
    "place_on_top_of": (0.5, 0.0, 0.06),
}


@pytest.mark.parametrize("task", PLACES)
@pytest.mark.parametrize("place", PLACES)
def test_each_place_satisfies_its_own_relation_only(task, place):
    state = world(block("red", PLACES[place]), REFERENCE)
    assert is_success(TASKS[task], state) == (task == place)


@pytest.mark.parametrize("task", PLACES)
@pytest.mark.parametrize(
    "changes", [{"robot_contact": True}, {"supported": False}, {"speed": 0.1}, {"turning": 1.0}]
)
def test_placing_needs_release_and_rest(task, changes):
    state = world(block("red", PLACES[task], **changes), REFERENCE)
    assert not is_success(TASKS[task], state)


def test_too_far_away_is_not_beside():
    assert not is_success(TASKS["place_left_of"], world(block("red", (0.5, 0.4, 0.02)), REFERENCE))


def test_touch_and_the_wrong_block():
    named, other = block("red", (0.5, 0.1, 0.02)), block("green", (0.5, -0.1, 0.02))
    above = world(named, other, tool=(0.53, 0.1, 0.054))  # 14 mm over the top
    assert is_success(TASKS["touch"], above)
    assert not is_wrong_object(TASKS["touch"], above)
    higher = world(named, other, tool=(0.53, 0.1, 0.056))
    assert not is_success(TASKS["touch"], higher)
    wrong = world(named, replace(other, fingers=1))
    assert is_wrong_object(TASKS["touch"], wrong)


def test_pick_needs_height_and_the_robot():
    lifted = block("red", (0.5, 0.1, 0.08), robot_contact=True, supported=False)
    assert is_success(TASKS["pick"], world(lifted))
    assert not is_success(TASKS["pick"], world(replace(lifted, robot_contact=False)))
    assert not is_success(TASKS["pick"], world(replace(lifted, supported=True)))
    low = replace(lifted, position=np.array([0.5, 0.1, 0.06]))
    assert not is_success(TASKS["pick"], world(low))
    named = block("green", (0.5, -0.1, 0.02))
    assert is_wrong_object(TASKS["pick"], world(named, lifted))


def test_instructions_state_the_frame():
    for name in ("place_left_of", "place_right_of"):
        assert "as seen from the robot" in TASKS[name].instruction("red", "blue")
    assert "robot" in TASKS["place_behind"].instruction("red", "blue")
    assert TASKS["touch"].instruction("red", None) == "touch the red block"
