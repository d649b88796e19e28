"""Scripted experts: the next action as a pure function of the true state.

They keep no memory, so they recover from any state: whatever phase a task is in is read off the
state itself. All motion is proportional near its goal and saturates smoothly far away.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation

from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.robots import Robot
from spatialvla_ft.sim.state import BlockState, WorldState
from spatialvla_ft.sim.tasks import PLACE_DISTANCE, Task, Way, relation_holds

GAIN = 2.0
"""1/s: the tool's speed over the remaining way."""
HOVER = 0.07
"""Metres above a block at which the tool arrives before it goes down."""
CLEARANCE = 0.03
"""Metres between a carried block and whatever it passes over."""
GRASP_DEPTH = 0.026
"""Metres that the fingertips reach below a block's top."""
PASSING = 0.062
"""Metres between a post's axis and the way of the tool past it."""
BESIDE = 0.095
"""Metres from a post's axis to where the tool goes to get past it."""
ALIGNED = 0.008
LOWERED = 0.010


def expert(env: TabletopEnv, way: Way | None = None) -> Float64[np.ndarray, 7]:
    """The expert's action (metres, radians, gripper) in the environment's present state.

    Args:
        env: after its reset.
        way: how to pass a post; None is `either`.
    """
    return expert_action(env.robot, env.task, env.state(), side_of(way, env.seed))


def side_of(way: Way | None, seed: int) -> int:
    """+1 to pass a post on the left, seen along the way, -1 on the right; drawn for `either`."""
    if way in ("left", "right"):
        return 1 if way == "left" else -1
    return 1 if np.random.default_rng([seed, 13]).random() < 0.5 else -1


def expert_action(
    robot: Robot, task: Task, state: WorldState, side: int = 1
) -> Float64[np.ndarray, 7]:
    """The expert's action for a task in a state; base frame, robot units.

    Args:
        robot: which.
        task: which.
        state: now.
        side: of a post, +1 left, -1 right.
    """
    named = state.blocks[0]
    if state.post is not None and not _way_is_free(state):
        return _round_the_post(robot, state, side)
    if task.touches:
        return _touch(robot, state)
    if task.places and relation_holds(task, named, state.blocks[1]) and _stands(named):
        return _retreat(robot, state)
    if named.held:
        return _carry(robot, task, state) if task.places else _lift(robot, state)
    return _grasp(robot, state)


def _touch(robot: Robot, state: WorldState) -> Float64[np.ndarray, 7]:
    block = state.blocks[0]
    away = float(np.linalg.norm(block.position[:2] - state.tool[:2]))
    height = block.top + min(HOVER, 0.8 * max(0.0, away - 0.02))
    goal = np.array([*block.position[:2], height])
    return _toward(robot, state, goal, _nearest_yaw(state, block.yaw), 0.0)


def _way_is_free(state: WorldState) -> bool:
    """The straight way to the named block passes the post with room to spare."""
    assert state.post is not None
    start, way = state.tool[:2], state.blocks[0].position[:2] - state.tool[:2]
    length = max(float(way @ way), 1e-9)
    share = np.clip((state.post - start) @ way / length, 0.0, 1.0)
    return float(np.linalg.norm(start + share * way - state.post)) >= PASSING


def _round_the_post(robot: Robot, state: WorldState, side: int) -> Float64[np.ndarray, 7]:
    """Level, to the place beside the post on the chosen side."""
    assert state.post is not None
    block = state.blocks[0]
    ahead = block.position[:2] - state.tool[:2]
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-9)
    beside = state.post + side * BESIDE * np.array([-ahead[1], ahead[0]])
    goal = np.array([*beside, block.top + HOVER])
    return _toward(robot, state, goal, _nearest_yaw(state, block.yaw), 0.0)


def _grasp(robot: Robot, state: WorldState) -> Float64[np.ndarray, 7]:
    """Come from above, aligned with the block's short side, then close."""
    block = state.blocks[0]
    height = max(block.bottom + 0.006, block.top - GRASP_DEPTH)
    yaw = _nearest_yaw(state, block.yaw)
    away = float(np.linalg.norm(block.position[:2] - state.tool[:2]))
    off = away + 0.06 * abs(yaw - state.rpy[2])
    lowered = state.tool[2] - height < LOWERED
    if off < 2.0 * ALIGNED and lowered:
        return _toward(robot, state, np.array([*block.position[:2], height]), yaw, 0.0)
    margin = 4.0 * max(0.0, off - 0.5 * ALIGNED)
    if state.opening < 0.9:
        margin = HOVER
    goal = np.array([*block.position[:2], height + min(HOVER + GRASP_DEPTH, margin)])
    return _toward(robot, state, goal, yaw, 1.0, rise_first=_rise_needed(state))


def _rise_needed(state: WorldState) -> float:
    """Height below which sideways motion would hit a block near the tool, metres."""
    near = [
        block.top
        for block in state.blocks
        if np.linalg.norm(block.position[:2] - state.tool[:2]) < 0.10
        and np.linalg.norm(block.position[:2] - state.blocks[0].position[:2]) > 0.0
    ]
    return max(near, default=-1.0)


def _lift(robot: Robot, state: WorldState) -> Float64[np.ndarray, 7]:
    block = state.blocks[0]
    rise = block.start_height + 0.10 - block.position[2]
    goal = state.tool + np.array([0.0, 0.0, rise])
    return _toward(robot, state, goal, float(state.rpy[2]), 0.0)


def _carry(robot: Robot, task: Task, state: WorldState) -> Float64[np.ndarray, 7]:
    """Up, across and down to the goal, then open."""
    named, reference = state.blocks[0], state.blocks[1]
    yaw = float(state.rpy[2])
    table = min(block.start_height - block.half_size[2] - block.riser for block in state.blocks)
    if task.on_top:
        place, support = reference.position[:2], reference.top
        yaw = _nearest_yaw(state, reference.yaw)
    else:
        place = reference.position[:2] + PLACE_DISTANCE * np.array(task.direction)
        support = table
    offset = state.tool - named.position
    low = support + named.half_height
    away = np.linalg.norm(place - named.position[:2]) + 0.03 * abs(yaw - state.rpy[2])
    if away < 1.5 * ALIGNED and named.bottom - support < 0.006:
        return _toward(robot, state, state.tool, yaw, 1.0)
    cross = max(block.top for block in state.blocks[1:])
    cross = max(cross, named.riser + table) + CLEARANCE + named.half_height
    height = low + min(max(cross - low, 0.0), 4.0 * max(0.0, away - 0.5 * ALIGNED))
    goal = np.array([*place, height]) + offset
    free = cross + offset[2] if away > 0.06 else -1.0
    # The last centimetre is pressed a little, so that contact is certain.
    goal[2] -= 0.003
    return _toward(robot, state, goal, yaw, 0.0, rise_first=free)


def _retreat(robot: Robot, state: WorldState) -> Float64[np.ndarray, 7]:
    """Open, then straight up."""
    rise = 0.08 if state.opening > 0.8 else 0.0
    goal = state.tool + np.array([0.0, 0.0, rise])
    return _toward(robot, state, goal, float(state.rpy[2]), 1.0)


def _stands(block: BlockState) -> bool:
    return block.supported and block.speed < 0.08


def _nearest_yaw(state: WorldState, yaw: float) -> float:
    """`yaw` or its opposite, the fingers being symmetric: near the present yaw, and near zero."""
    here = float(state.rpy[2])
    candidates = (yaw - np.pi, yaw, yaw + np.pi)
    return min(candidates, key=lambda c: abs(c - here) + 0.5 * abs(c))


def _toward(
    robot: Robot,
    state: WorldState,
    goal: Float64[np.ndarray, 3],
    yaw: float,
    gripper: float,
    rise_first: float = -1.0,
) -> Float64[np.ndarray, 7]:
    """One smooth step of the tool to `goal` and to `yaw`, gripper pointing down.

    Sideways motion is slowed while the tool is below `rise_first` (metres, base frame).
    """
    way = goal - state.tool
    turn = (Rotation.from_euler("z", yaw) * Rotation.from_matrix(state.rotation).inv()).as_rotvec()
    gain = GAIN / robot.control_hz
    step = _soft_limit(gain * way, 0.9 * robot.max_translation)
    step[:2] *= np.clip(1.0 - (rise_first - state.tool[2]) / 0.02, 0.0, 1.0)
    turn = _soft_limit(gain * turn, 0.9 * robot.max_rotation)
    rotation = Rotation.from_rotvec(turn).as_euler("xyz")
    return np.concatenate([step, rotation, [gripper]])


def _soft_limit(vector: Float64[np.ndarray, 3], limit: float) -> Float64[np.ndarray, 3]:
    """Shorten a vector smoothly to a length below `limit`, keeping its direction."""
    length = float(np.linalg.norm(vector))
    return np.asarray(vector * (limit * np.tanh(length / limit) / max(length, 1e-12)))
