"""Camera poses and intrinsics, in OpenCV axes: x right, y down, z forward; metres."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from spatialvla_ft.sim.robots import FrontCamera, Robot, WristCamera

CAMERAS = ("front", "wrist")
CAMERA_MODES = ("fixed", "random")


@dataclass(frozen=True)
class CameraPose:
    """A camera with respect to its parent: the base frame (front) or the end effector (wrist).

    Attributes:
        position: (3,) metres.
        rotation: (3, 3) camera to parent; columns are the camera's right, down and forward.
        fov: vertical field of view, radians.
    """

    position: Float64[np.ndarray, 3]
    rotation: Float64[np.ndarray, "3 3"]
    fov: float


def intrinsics(fov: float, width: int, height: int) -> Float64[np.ndarray, "3 3"]:
    """Pinhole K in pixels, square pixels, pixel centres at +0.5; `fov` vertical, radians."""
    focal = 0.5 * height / np.tan(0.5 * fov)
    return np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])


def look_at(
    position: Float64[np.ndarray, 3],
    aim: Float64[np.ndarray, 3],
    up: Float64[np.ndarray, 3],
    roll: float = 0.0,
) -> Float64[np.ndarray, "3 3"]:
    """Camera-to-parent rotation of a camera at `position` that looks at `aim`.

    `up` must not be parallel to the viewing direction; `roll` (radians) then turns the camera
    about its optical axis.
    """
    forward = (aim - position) / np.linalg.norm(aim - position)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(np.stack([right, down, forward], axis=1) @ turn)


def front_pose(camera: FrontCamera, aim: Float64[np.ndarray, 3], roll: float = 0.0) -> CameraPose:
    """The front camera in the base frame, looking at `aim`."""
    direction = np.array(
        [
            np.cos(camera.elevation) * np.cos(camera.azimuth),
            np.cos(camera.elevation) * np.sin(camera.azimuth),
            np.sin(camera.elevation),
        ]
    )
    position = aim + camera.distance * direction
    rotation = look_at(position, aim, np.array([0.0, 0.0, 1.0]), roll)
    return CameraPose(position, rotation, camera.fov)


def wrist_pose(camera: WristCamera) -> CameraPose:
    """The wrist camera in the end-effector frame; the image's top points away from the base."""
    position, aim = np.array(camera.offset), np.array(camera.aim)
    return CameraPose(position, look_at(position, aim, np.array([1.0, 0.0, 0.0])), camera.fov)


def episode_cameras(robot: Robot, mode: str, rng: np.random.Generator) -> dict[str, CameraPose]:
    """Poses of both cameras for one episode.

    "fixed" gives the robot's own poses; "random" moves the front camera by up to 45 degrees around
    the workspace, changes height, distance, field of view, roll and aim, and shakes the wrist
    camera a little. The random front camera still sees the whole workspace, because distance and
    field of view change against each other.
    """
    if mode not in CAMERA_MODES:
        raise ValueError(
            f"camera_mode: got {mode!r}, allowed are {list(CAMERA_MODES)}; choose one of them"
        )
    aim = np.array(robot.workspace.centre) + np.array([0.0, 0.0, 0.05])
    if mode == "fixed":
        return {"front": front_pose(robot.front, aim), "wrist": wrist_pose(robot.wrist)}
    distance = robot.front.distance * rng.uniform(0.85, 1.2)
    seen = robot.front.distance * np.tan(robot.front.fov / 2) * rng.uniform(0.95, 1.15)
    front = FrontCamera(
        azimuth=robot.front.azimuth + rng.uniform(-0.8, 0.8),
        elevation=robot.front.elevation + rng.uniform(-0.2, 0.25),
        distance=distance,
        fov=2 * float(np.arctan(seen / distance)),
    )
    aim = aim + rng.uniform([-0.03, -0.03, -0.02], [0.03, 0.03, 0.02])
    wrist = replace(
        robot.wrist,
        offset=tuple(np.array(robot.wrist.offset) + rng.uniform(-0.01, 0.01, 3)),
        aim=tuple(np.array(robot.wrist.aim) + rng.uniform(-0.01, 0.01, 3)),
        fov=robot.wrist.fov * rng.uniform(0.9, 1.1),
    )
    return {
        "front": front_pose(front, aim, roll=rng.uniform(-0.1, 0.1)),
        "wrist": wrist_pose(wrist),
    }
