"""The robots: geometry, cameras, control rate and action scale, as data.

Every robot is a serial arm whose links all lie along their own z axis at zero joint angles, with
a two-finger gripper. Positions and directions are metres and radians; the base frame has x
forward, y to the robot's left, z up. The end-effector frame is aligned with the base frame when
the gripper points straight down, so roll and pitch stay near zero in ordinary work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from spatialvla_ft.actions.spaces import ActionSpace

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Joint:
    """One revolute joint and the rigid link behind it.

    Attributes:
        axis: rotation axis in the joint's own frame at zero angle.
        length: distance along z to the next joint (or the flange), metres.
        limit: the angle stays in [-limit, limit], radians.
        stiffness: position gain of the servo, N m / rad.
        torque: largest torque, N m.
    """

    axis: Literal["y", "z"]
    length: float
    limit: float
    stiffness: float
    torque: float


@dataclass(frozen=True)
class Gripper:
    """Two parallel fingers that open along the end effector's y axis.

    Attributes:
        reach: flange to fingertip ends (the tool point), metres.
        opening: largest gap between the fingers, metres.
        finger_length, finger_thickness, finger_width: extents along the approach, y and x, metres.
        force: squeezing force, N.
    """

    reach: float = 0.165
    opening: float = 0.064
    finger_length: float = 0.055
    finger_thickness: float = 0.011
    finger_width: float = 0.020
    force: float = 20.0


@dataclass(frozen=True)
class FrontCamera:
    """A camera on a sphere around the workspace, seen from the robot base frame.

    Attributes:
        azimuth: direction from the workspace to the camera, radians; 0 = beyond the workspace,
            facing the robot; positive towards the robot's left.
        elevation: angle above the horizontal, radians.
        distance: metres from the aim point.
        fov: vertical field of view, radians.
    """

    azimuth: float
    elevation: float
    distance: float
    fov: float


@dataclass(frozen=True)
class WristCamera:
    """A camera on the hand, in the end-effector frame (origin at the tool point, z up).

    Attributes:
        offset: where the camera sits, metres.
        aim: the point it looks at, metres.
        fov: vertical field of view, radians.
    """

    offset: tuple[float, float, float]
    aim: tuple[float, float, float]
    fov: float


@dataclass(frozen=True)
class Workspace:
    """Where blocks may stand and where the tool starts, base frame, metres."""

    x: tuple[float, float]
    y: tuple[float, float]
    start: tuple[float, float, float]
    reach_x: tuple[float, float]
    reach_y: tuple[float, float]

    @property
    def centre(self) -> tuple[float, float, float]:
        """Middle of the area in which blocks stand, on the table."""
        return (sum(self.x) / 2, sum(self.y) / 2, 0.0)


@dataclass(frozen=True)
class Robot:
    """A robot on its table.

    Attributes:
        name: how commands and datasets call it.
        base_position: base in the world, metres; the table top is world z = 0.
        base_yaw: turn of the base about the world's z, radians.
        joints: from the base up; the first stands on `pedestal`.
        pedestal: height of the first joint above the base frame, metres.
        control_hz: actions per second.
        max_translation, max_rotation: largest change per step and axis, metres and radians.
        arm_colour, joint_colour, hand_colour, table_colour, floor_colour: RGB in [0, 1].
    """

    name: str
    base_position: tuple[float, float, float]
    base_yaw: float
    pedestal: float
    joints: tuple[Joint, ...]
    home: tuple[float, ...]
    gripper: Gripper
    workspace: Workspace
    front: FrontCamera
    wrist: WristCamera
    control_hz: float
    max_translation: float
    max_rotation: float
    arm_colour: Colour
    joint_colour: Colour
    hand_colour: Colour
    table_colour: Colour
    floor_colour: Colour

    def action_space(self) -> ActionSpace:
        """End-effector deltas in the base frame at this robot's control rate."""
        # Imported here: the actions package may load torch, which simulation processes must not.
        from spatialvla_ft.actions.spaces import end_effector_delta

        return end_effector_delta(self.control_hz)


def _joints(axes: str, lengths: tuple[float, ...], limits: tuple[float, ...]) -> tuple[Joint, ...]:
    stiffness = {7: (8e3, 8e3, 5e3, 5e3, 2e3, 2e3, 1e3), 6: (8e3, 8e3, 5e3, 2e3, 2e3, 1e3)}
    torque = {7: (150, 150, 100, 100, 40, 40, 20), 6: (150, 150, 100, 40, 40, 20)}
    return tuple(
        Joint(axis, length, limit, float(k), float(t))  # type: ignore[arg-type]
        for axis, length, limit, k, t in zip(
            axes, lengths, limits, stiffness[len(axes)], torque[len(axes)], strict=True
        )
    )


ROBOT_A = Robot(
    name="robot_a",
    base_position=(0.0, 0.0, 0.0),
    base_yaw=0.0,
    pedestal=0.14,
    joints=_joints(
        "zyzyzyz",
        (0.19, 0.21, 0.21, 0.20, 0.20, 0.05, 0.05),
        (2.9, 1.9, 2.9, 2.6, 2.9, 2.4, 3.0),
    ),
    home=(0.0, 0.15, 0.0, 1.75, 0.0, 1.24, 0.0),
    gripper=Gripper(),
    workspace=Workspace(
        x=(0.38, 0.62),
        y=(-0.19, 0.19),
        start=(0.48, 0.0, 0.24),
        reach_x=(0.30, 0.70),
        reach_y=(-0.30, 0.30),
    ),
    front=FrontCamera(azimuth=0.35, elevation=0.75, distance=0.95, fov=0.60),
    wrist=WristCamera(offset=(0.11, 0.0, 0.13), aim=(0.03, 0.0, -0.02), fov=1.15),
    control_hz=5.0,
    max_translation=0.03,
    max_rotation=0.24,
    arm_colour=(0.92, 0.92, 0.94),
    joint_colour=(0.25, 0.27, 0.32),
    hand_colour=(0.16, 0.17, 0.20),
    table_colour=(0.72, 0.62, 0.50),
    floor_colour=(0.35, 0.37, 0.40),
)

ROBOT_B = Robot(
    name="robot_b",
    base_position=(-0.10, 0.12, 0.03),
    base_yaw=-0.90,
    pedestal=0.10,
    joints=_joints(
        "zyyzyz",
        (0.175, 0.36, 0.17, 0.18, 0.045, 0.045),
        (2.9, 1.9, 2.6, 2.9, 2.4, 3.0),
    ),
    home=(0.0, 0.15, 1.75, 0.0, 1.24, 0.0),
    gripper=Gripper(reach=0.150, finger_length=0.050, finger_width=0.018),
    workspace=Workspace(
        x=(0.334, 0.546),
        y=(-0.167, 0.167),
        start=(0.42, 0.0, 0.21),
        reach_x=(0.26, 0.62),
        reach_y=(-0.27, 0.27),
    ),
    front=FrontCamera(azimuth=-1.3, elevation=0.70, distance=0.72, fov=0.78),
    wrist=WristCamera(offset=(0.095, 0.02, 0.12), aim=(0.025, 0.0, -0.02), fov=1.25),
    control_hz=10.0,
    max_translation=0.015,
    max_rotation=0.12,
    arm_colour=(0.95, 0.55, 0.15),
    joint_colour=(0.15, 0.15, 0.15),
    hand_colour=(0.55, 0.57, 0.60),
    table_colour=(0.42, 0.47, 0.44),
    floor_colour=(0.62, 0.60, 0.56),
)

ROBOTS: dict[str, Robot] = {robot.name: robot for robot in (ROBOT_A, ROBOT_B)}


def get_robot(name: str) -> Robot:
    """The robot of that name; ValueError lists the names there are."""
    try:
        return ROBOTS[name]
    except KeyError:
        raise ValueError(
            f"robot: got {name!r}, allowed are {sorted(ROBOTS)}; "
            "choose one of them or add a Robot to spatialvla_ft/sim/robots.py"
        ) from None
