"""The tasks: what is said, and when it is done.

Directions are the robot's: left is +y and behind is +x of its base frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from spatialvla_ft.sim.state import BlockState, WorldState

TOUCH_DISTANCE = 0.015
"""Metres between the fingertips and the block's surface that count as touching."""
LIFT_HEIGHT = 0.05
"""Metres above its start at which a block counts as picked."""
WRONG_LIFT_HEIGHT = 0.03
PLACE_DISTANCE = 0.13
"""Metres between the centres at which the expert places beside another block."""
MAX_PLACE_DISTANCE = 0.25
MAX_PLACE_ANGLE = np.deg2rad(40)
"""Half the opening of the cone around the named direction in which a block counts as placed."""
REST_SPEED = 0.02
REST_TURNING = 0.3


@dataclass(frozen=True)
class Task:
    """One kind of task.

    Attributes:
        name: how commands call it.
        template: the instruction; {named} and {reference} are colours.
        seconds: time allowed.
        direction: for placing beside: unit vector from the reference to the place, base frame.
        on_top: placed on the reference.
    """

    name: str
    template: str
    seconds: float
    direction: tuple[float, float] | None = None
    on_top: bool = False

    @property
    def places(self) -> bool:
        """The task has a reference block."""
        return self.on_top or self.direction is not None

    @property
    def start_opening(self) -> float:
        """Gripper at the start of the episode: a closed one touches, an open one grasps."""
        return 0.0 if self.name == "touch" else 1.0

    def instruction(self, named: str, reference: str | None) -> str:
        """The instruction in words."""
        return self.template.format(named=named, reference=reference)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("touch", "touch the {named} block", 8.0),
        Task("pick", "pick up the {named} block", 14.0),
        Task(
            "place_left_of",
            "put the {named} block to the left of the {reference} block, as seen from the robot",
            24.0,
            direction=(0.0, 1.0),
        ),
        Task(
            "place_right_of",
            "put the {named} block to the right of the {reference} block, as seen from the robot",
            24.0,
            direction=(0.0, -1.0),
        ),
        Task(
            "place_in_front_of",
            "put the {named} block in front of the {reference} block, on the robot's side of it",
            24.0,
            direction=(-1.0, 0.0),
        ),
        Task(
            "place_behind",
            "put the {named} block behind the {reference} block, on the far side from the robot",
            24.0,
            direction=(1.0, 0.0),
        ),
        Task(
            "place_on_top_of",
            "put the {named} block on top of the {reference} block",
            24.0,
            on_top=True,
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of that name; ValueError lists the names there are."""
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(
            f"task: got {name!r}, allowed are {list(TASKS)}; choose one of them"
        ) from None


def is_beside(
    position: Float64[np.ndarray, 3],
    reference: Float64[np.ndarray, 3],
    direction: tuple[float, float],
) -> bool:
    """`position` lies in the cone around `direction` from `reference`, and not too far away."""
    offset = position[:2] - reference[:2]
    distance = float(np.linalg.norm(offset))
    along = float(offset @ np.array(direction))
    return 0.0 < distance <= MAX_PLACE_DISTANCE and along >= distance * np.cos(MAX_PLACE_ANGLE)


def relation_holds(task: Task, named: BlockState, reference: BlockState) -> bool:
    """The named block stands where the instruction says, whoever still holds it."""
    if task.direction is not None:
        beside = is_beside(named.position, reference.position, task.direction)
        return beside and named.bottom < reference.top - 0.005
    offset = reference.rotation.T @ (named.position - reference.position)
    inside = bool(np.all(np.abs(offset[:2]) < reference.half_size[:2]))
    gap = named.bottom - reference.top
    return inside and abs(gap) < 0.008


def at_rest(block: BlockState) -> bool:
    """Released, supported and not moving."""
    return (
        not block.robot_contact
        and block.supported
        and block.speed < REST_SPEED
        and block.turning < REST_TURNING
    )


def is_success(task: Task, state: WorldState) -> bool:
    """The task is solved in this state."""
    named = state.blocks[0]
    if task.name == "touch":
        return touches(state, named)
    if task.name == "pick":
        lifted = named.position[2] - named.start_height > LIFT_HEIGHT
        return bool(lifted and named.robot_contact and not named.supported)
    return at_rest(named) and relation_holds(task, named, state.blocks[1])


def is_wrong_object(task: Task, state: WorldState) -> bool:
    """A block that was not to be touched (or moved) is touched (or lifted)."""
    if task.name == "touch":
        return any(touches(state, block) for block in state.blocks[1:])
    return any(
        block.robot_contact and block.position[2] - block.start_height > WRONG_LIFT_HEIGHT
        for block in state.blocks[1:]
    )


def touches(state: WorldState, block: BlockState) -> bool:
    """The fingertips are at the block's surface."""
    return block.fingers > 0 or block.distance_to(state.tool) < TOUCH_DISTANCE
