"""What is true in the physics, in the robot's base frame: for success tests and experts.

Policies never see this; they see an `Observation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class BlockState:
    """One block now.

    Attributes:
        colour: its name in instructions.
        position: (3,) centre, metres, base frame.
        rotation: (3, 3) block to base.
        half_size: (3,) half extents along its own axes, metres; x is the long side.
        speed: of the centre, m/s.
        turning: angular speed, rad/s.
        fingers: how many fingers touch it, 0 to 2.
        robot_contact: touched by any part of the robot.
        supported: touches the table, a riser or another block.
        start_height: height of the centre at the start of the episode, metres.
        riser: height of the riser it started on, metres.
    """

    colour: str
    position: Float64[np.ndarray, 3]
    rotation: Float64[np.ndarray, "3 3"]
    half_size: Float64[np.ndarray, 3]
    speed: float
    turning: float
    fingers: int
    robot_contact: bool
    supported: bool
    start_height: float
    riser: float

    @property
    def yaw(self) -> float:
        """Direction of the long side in the base's x-y plane, radians in (-pi/2, pi/2]."""
        yaw = np.arctan2(self.rotation[1, 0], self.rotation[0, 0])
        return float((yaw + np.pi / 2) % np.pi - np.pi / 2)

    @property
    def half_height(self) -> float:
        """Half the vertical extent of the block as it lies, metres."""
        return float(np.abs(self.rotation[2]) @ self.half_size)

    @property
    def top(self) -> float:
        """Height of the highest point, metres."""
        return float(self.position[2]) + self.half_height

    @property
    def bottom(self) -> float:
        """Height of the lowest point, metres."""
        return float(self.position[2]) - self.half_height

    @property
    def held(self) -> bool:
        """Both fingers touch it."""
        return self.fingers == 2

    def distance_to(self, point: Float64[np.ndarray, 3]) -> float:
        """Metres from `point` (base frame) to the block's surface; 0 inside."""
        local = np.abs(self.rotation.T @ (point - self.position)) - self.half_size
        return float(np.linalg.norm(np.maximum(local, 0.0)))


@dataclass(frozen=True)
class WorldState:
    """Robot and blocks now, base frame.

    Attributes:
        tool: (3,) tool point between the fingertip ends, metres.
        rotation: (3, 3) end effector to base; identity when the gripper points down.
        opening: gap between the fingers over the largest gap, 0 to 1.
        blocks: block 0 is the one the instruction names first, block 1 the reference if any.
        post: (2,) where the post stands, metres; None where there is none.
    """

    tool: Float64[np.ndarray, 3]
    rotation: Float64[np.ndarray, "3 3"]
    opening: float
    blocks: tuple[BlockState, ...]
    post: Float64[np.ndarray, 2] | None = None

    @property
    def rpy(self) -> Float64[np.ndarray, 3]:
        """Roll, pitch, yaw of the end effector, radians, scipy's lower-case 'xyz'."""
        return np.asarray(Rotation.from_matrix(self.rotation).as_euler("xyz"))


@dataclass(frozen=True)
class Observation:
    """What a policy sees.

    Attributes:
        images: (H, W, 3) uint8 RGB per camera.
        depth: (H, W) float32 per camera, metres along the optical axis, 0 = unknown.
        intrinsics: (3, 3) float64 per camera, pixels, pixel centres at +0.5.
        extrinsics: (4, 4) float64 per camera, camera (OpenCV axes) to robot base, metres.
        state: (7,) float32: x y z roll pitch yaw of the tool in the base frame, then the
            gripper's opening, 1 open to 0 closed.
        instruction: what the robot was told.
    """

    images: dict[str, UInt8[np.ndarray, "H W 3"]]
    depth: dict[str, Float32[np.ndarray, "H W"]]
    intrinsics: dict[str, Float64[np.ndarray, "3 3"]]
    extrinsics: dict[str, Float64[np.ndarray, "4 4"]]
    state: Float32[np.ndarray, 7]
    instruction: str


@dataclass(frozen=True)
class StepResult:
    """What one action led to.

    Attributes:
        success: the task is solved.
        wrong_object: a block that was not named has been touched (touch) or lifted (the others).
        done: the episode is over: solved, wrong object, collision or out of steps.
        steps: actions executed so far.
        collided: the hand has hit the post.
    """

    success: bool
    wrong_object: bool
    done: bool
    steps: int
    collided: bool = False
