"""The tasks: what is said, and when it is done.

Directions are the robot's: left is +y and behind is +x of its base frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

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
POST_RADIUS = 0.02
"""Metres; of the post that stands in the way of `detour`."""
POST_HEIGHT = 0.34
"""Metres above the table: higher than the hand travels, so that nothing goes over it."""
HIT_DISTANCE = 0.045
"""Metres between the tool and the post's axis, seen from above, at which the hand hits it."""
REST_TURNING = 0.3


Way = Literal["left", "right", "either"]
"""How an expert passes a post: on one side, or in half of the episodes on the other."""


@dataclass(frozen=True)
class Task:
    """One kind of task.

    Attributes:
        name: how commands call it.
        template: the instruction; {named} and {reference} are colours.
        seconds: time allowed.
        direction: for placing beside: unit vector from the reference to the place, base frame.
        on_top: placed on the reference.
        post: a post stands between the tool and the named block, and must not be hit.
    """

    name: str
    template: str
    seconds: float
    direction: tuple[float, float] | None = None
    on_top: bool = False
    post: bool = False

    @property
    def touches(self) -> bool:
        """The named block is only touched, with a closed gripper."""
        return self.name in ("touch", "detour")

    @property
    def places(self) -> bool:
        """The task has a reference block."""
        return self.on_top or self.direction is not None

    @property
    def start_opening(self) -> float:
        """Gripper at the start of the episode: a closed one touches, an open one grasps."""
        return 0.0 if self.touches else 1.0

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
        Task("detour", "touch the {named} block", 10.0, post=True),
    )
}
PLAIN = tuple(name for name, task in TASKS.items() if not task.post)
"""The seven that `all` means: those without a post."""


def get_task(name: str) -> Task:
    """The task of that name; ValueError lists the names there are."""
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(
            f"task: got {name!r}, allowed are {list(TASKS)}; choose one of them"
        ) from None


def check_way(way: str | None, tasks: Sequence[str]) -> Way | None:
    """The way, or None where nothing is said; ValueError for one that there is not."""
    if way is None:
        return None
    if way not in get_args(Way):
        raise ValueError(f"expert: got {way!r}, allowed are {list(get_args(Way))}")
    without = [name for name in tasks if not get_task(name).post]
    if without:
        able = [name for name, task in TASKS.items() if task.post]
        raise ValueError(
            f"expert: {way!r} says how to pass a post, and {', '.join(without)} has none; leave it "
            f"out, or choose the task {', '.join(able)}"
        )
    return way  # type: ignore[return-value]


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
    if task.touches:
        return touches(state, named)
    if task.name == "pick":
        lifted = named.position[2] - named.start_height > LIFT_HEIGHT
        return bool(lifted and named.robot_contact and not named.supported)
    return at_rest(named) and relation_holds(task, named, state.blocks[1])


def is_wrong_object(task: Task, state: WorldState) -> bool:
    """A block that was not to be touched (or moved) is touched (or lifted)."""
    if task.touches:
        return any(touches(state, block) for block in state.blocks[1:])
    return any(
        block.robot_contact and block.position[2] - block.start_height > WRONG_LIFT_HEIGHT
        for block in state.blocks[1:]
    )


def is_collision(state: WorldState) -> bool:
    """The hand hits the post."""
    if state.post is None:
        return False
    return float(np.linalg.norm(state.tool[:2] - state.post)) < HIT_DISTANCE


def touches(state: WorldState, block: BlockState) -> bool:
    """The fingertips are at the block's surface."""
    return block.fingers > 0 or block.distance_to(state.tool) < TOUCH_DISTANCE
