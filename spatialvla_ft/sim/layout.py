"""Where the blocks stand at the start of an episode, a seeded random draw; what may be asked for.

Base frame, metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spatialvla_ft.sim.cameras import CAMERAS, episode_cameras
from spatialvla_ft.sim.robots import Robot, Workspace
from spatialvla_ft.sim.scene import MAX_OFFSCREEN
from spatialvla_ft.sim.tasks import MAX_PLACE_ANGLE, PLACE_DISTANCE, Task, is_beside

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.25, 0.90),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.15, 0.70),
    "cyan": (0.10, 0.80, 0.85),
}
MIN_SPACING = 0.125
"""Metres between block centres: room for an open gripper between neighbours."""
MAX_YAW = np.deg2rad(60)
RISER_HALF = 0.045
POST_WAY = (0.18, 0.34)
"""Metres between the tool's start and the named block, where a post stands between them."""
POST_JITTER = 0.008
"""Metres that the post stands off the straight way, at most."""
POST_FREE = 0.13
"""Metres that other blocks stand away from the post."""
POST_DISTRACTORS = 3
RISER_SHARE = 0.4
"""Share of the blocks that stand on a riser."""


@dataclass(frozen=True)
class BlockLayout:
    """A block at the start.

    Attributes:
        colour: key of `COLOURS`.
        half_size: half extents, metres; x is the long side.
        position: (x, y) of the centre, base frame, metres.
        yaw: direction of the long side, radians.
        riser: height of the block's support above the table, metres; 0 = on the table.
    """

    colour: str
    half_size: tuple[float, float, float]
    position: tuple[float, float]
    yaw: float
    riser: float


@dataclass(frozen=True)
class Layout:
    """Blocks (the named one first, then the reference if any) and the tool's starting pose.

    `post` is where the post stands, (x, y), or None.
    """

    blocks: tuple[BlockLayout, ...]
    tool: tuple[float, float, float]
    tool_yaw: float
    post: tuple[float, float] | None = None


def sample_layout(robot: Robot, task: Task, distractors: int, rng: np.random.Generator) -> Layout:
    """Draw a layout in which the task is possible and not already done."""
    count = block_count(task, distractors)
    workspace = robot.workspace
    colours = rng.permutation(list(COLOURS))[:count]
    positions = _positions(workspace, task, count, rng)
    blocks = tuple(
        BlockLayout(
            colour=str(colour),
            half_size=(
                rng.uniform(0.033, 0.037),
                rng.uniform(0.018, 0.021),
                rng.uniform(0.015, 0.030),
            ),
            position=(float(x), float(y)),
            yaw=rng.uniform(-MAX_YAW, MAX_YAW),
            riser=rng.uniform(0.015, 0.06) if rng.random() < RISER_SHARE else 0.0,
        )
        for colour, (x, y) in zip(colours, positions, strict=True)
    )
    spread = np.array([0.06, 0.08, 0.03])
    tool = np.array(workspace.start) + rng.uniform(-spread, spread)
    x, y, z = tool.tolist()
    layout = Layout(blocks, (x, y, z), rng.uniform(-0.3, 0.3))
    return _with_post(layout, workspace, rng) if task.post else layout


def _with_post(layout: Layout, workspace: Workspace, rng: np.random.Generator) -> Layout:
    """The post half way to the named block, and room on both sides of it.

    Tool and blocks are drawn again: the tool on the robot's side, the named block far enough from
    it that there is a way round, the others where they leave that way free. All blocks stand on
    the table.
    """
    low = np.array([workspace.x[0], workspace.y[0]])
    high = np.array([workspace.x[1], workspace.y[1]])
    count, near = len(layout.blocks), workspace.reach_x[0]
    for _ in range(20_000):
        tool = rng.uniform((near + 0.02, -0.08), (near + 0.09, 0.08))
        positions = rng.uniform(low, high, (count, 2))
        way = positions[0] - tool
        length = float(np.linalg.norm(way))
        if not POST_WAY[0] <= length <= POST_WAY[1]:
            continue
        ahead = way / length
        across = np.array([-ahead[1], ahead[0]])
        post = tool + 0.5 * way + rng.uniform(-POST_JITTER, POST_JITTER) * across
        gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        apart = count == 1 or gaps[np.triu_indices(count, 1)].min() >= MIN_SPACING
        clear = np.linalg.norm(positions[1:] - post, axis=1) >= POST_FREE
        if apart and clear.all():
            blocks = tuple(
                replace(block, position=(float(px), float(py)), riser=0.0)
                for block, (px, py) in zip(layout.blocks, positions, strict=True)
            )
            start = (float(tool[0]), float(tool[1]), layout.tool[2])
            return replace(layout, blocks=blocks, tool=start, post=(float(post[0]), float(post[1])))
    raise AssertionError(f"no layout with a post for {count} blocks in {workspace}")


def distractor_counts(text: str) -> tuple[int, ...]:
    """Numbers of what is written as 0,1,1,2,2; ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"distractors: got {text!r}, allowed are a number or several, as in 0,1,1,2,2 (then "
            "the episode of seed s has the one at place s modulo their count)"
        )
    return tuple(int(part) for part in parts)


def block_count(task: Task, distractors: int) -> int:
    """Blocks in an episode; ValueError if there are not enough colours, or not enough room."""
    most = POST_DISTRACTORS if task.post else len(COLOURS) - 1 - task.places
    why = "room is left beside the post" if task.post else "every block needs a colour of its own"
    if not 0 <= distractors <= most:
        raise ValueError(
            f"distractors: got {distractors}, allowed for {task.name!r} are 0 to {most}; {why}"
        )
    return 1 + task.places + distractors


def check_options(
    robot: Robot,
    task: Task,
    image_size: int,
    cameras: Sequence[str],
    camera_mode: str,
    distractors: int | Sequence[int],
    other_word: bool,
) -> list[int]:
    """What an environment is made with, checked without the simulator.

    Returns:
        Blocks of its episodes, for each number of distractors.

    Raises:
        ValueError: names what is not allowed, and what is.
    """
    for camera in cameras:
        if camera not in CAMERAS:
            raise ValueError(
                f"cameras: got {camera!r}, allowed are {list(CAMERAS)}; choose among them"
            )
    if not 1 <= image_size <= MAX_OFFSCREEN:
        raise ValueError(f"image_size: got {image_size}, allowed are 1 to {MAX_OFFSCREEN}")
    episode_cameras(robot, camera_mode, np.random.default_rng(0))  # checks the mode
    numbers = [distractors] if isinstance(distractors, int) else list(distractors)
    if not numbers:
        raise ValueError("distractors: got no number, allowed are one or several")
    counts = [block_count(task, number) for number in numbers]
    if other_word and (task.places or min(numbers) < 1):
        raise ValueError(
            f"other_word: needs a task without a reference block and at least 1 distractor in "
            f"every episode; got task {task.name!r} and distractors {numbers}"
        )
    return counts


def _positions(
    workspace: Workspace, task: Task, count: int, rng: np.random.Generator
) -> np.ndarray:
    """(count, 2) centres; drawn until they are apart and the task makes sense."""
    low = np.array([workspace.x[0], workspace.y[0]])
    high = np.array([workspace.x[1], workspace.y[1]])
    for _ in range(20_000):
        positions = rng.uniform(low, high, (count, 2))
        gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        if count > 1 and gaps[np.triu_indices(count, 1)].min() < MIN_SPACING:
            continue
        if task.direction is None or _place_is_free(workspace, task.direction, positions):
            return positions
    raise AssertionError(f"no layout for {count} blocks in {workspace}")


def _place_is_free(
    workspace: Workspace, direction: tuple[float, float], positions: np.ndarray
) -> bool:
    """The goal beside the reference is in reach and empty, and not where the block is already."""
    named, reference = positions[0], positions[1]
    goal = reference + PLACE_DISTANCE * np.array(direction)
    within = (workspace.reach_x[0] <= goal[0] <= workspace.reach_x[1]) and (
        workspace.reach_y[0] <= goal[1] <= workspace.reach_y[1]
    )
    others = np.delete(positions, 1, axis=0)
    free = np.linalg.norm(others - goal, axis=1).min() >= MIN_SPACING
    # A margin, so that a block which settles by a hair is not suddenly in the right place.
    offset = named - reference
    angle = np.arccos(np.clip(offset @ np.array(direction) / np.linalg.norm(offset), -1, 1))
    return (
        within
        and free
        and angle > MAX_PLACE_ANGLE + 0.15
        and not is_beside(np.append(named, 0.0), np.append(reference, 0.0), direction)
    )
