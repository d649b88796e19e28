"""The MuJoCo model of a robot at its table with coloured blocks, written as MJCF.

Block sizes, riser heights, colours and camera poses are set per episode on the compiled model
(`env`), so that a new episode needs no new compilation.
"""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from spatialvla_ft.sim.robots import Colour, Gripper, Joint, Robot
from spatialvla_ft.sim.tasks import POST_HEIGHT, POST_RADIUS

MAX_OFFSCREEN = 1024
NEAR, FAR = 0.01, 8.0
"""Clipping distances of every camera, metres."""

_TABLE, _BLOCK = 1, 2
_AXES = {"y": "0 1 0", "z": "0 0 1"}


def _element(tag: str, /, *children: str, **attributes: object) -> str:
    """An XML element; numbers and tuples become space-separated text, a trailing _ is dropped."""
    parts = []
    for key, value in attributes.items():
        if isinstance(value, (tuple, list)):
            text = " ".join(f"{v:.9g}" if isinstance(v, float) else str(v) for v in value)
        else:
            text = f"{value:.9g}" if isinstance(value, float) else str(value)
        parts.append(f" {key.rstrip('_')}={quoteattr(text)}")
    return f"<{tag}{''.join(parts)}>{''.join(children)}</{tag}>"


def _rgba(colour: Colour) -> tuple[float, ...]:
    return (*colour, 1.0)


def _visual(**attributes: object) -> str:
    """A geom that is drawn but neither touches nor weighs anything."""
    return _element("geom", contype=0, conaffinity=0, group=1, mass=0.0, **attributes)


def _finger(gripper: Gripper, name: str, side: int, colour: Colour) -> str:
    """One finger in the flange frame; it slides outwards along side * y."""
    half = (gripper.finger_width / 2, gripper.finger_thickness / 2, gripper.finger_length / 2)
    joint = _element(
        "joint",
        name=name,
        type="slide",
        axis=(0, side, 0),
        range=(0.0, gripper.opening / 2),
        armature=0.05,
        damping=20.0,
    )
    pad = _element(
        "geom",
        name=f"{name}_pad",
        type="box",
        size=half,
        mass=0.04,
        pos=(0.0, side * half[1], gripper.reach - half[2]),
        rgba=_rgba(colour),
        contype=0,
        conaffinity=_TABLE | _BLOCK,
        condim=4,
        friction=(1.2, 0.02, 0.001),
        priority=1,
        solref=(0.01, 1.0),
        solimp=(0.95, 0.99, 0.001),
    )
    return _element("body", joint, pad, name=name, gravcomp=1)


def _hand(robot: Robot) -> str:
    gripper = robot.gripper
    palm = gripper.reach - gripper.finger_length
    palm_geom = _element(
        "geom",
        name="palm",
        type="box",
        mass=0.5,
        rgba=_rgba(robot.hand_colour),
        size=(0.024, gripper.opening / 2 + gripper.finger_thickness, palm / 2 - 0.005),
        pos=(0.0, 0.0, palm / 2 + 0.005),
        contype=0,
        conaffinity=_TABLE | _BLOCK,
    )
    # The end-effector frame is turned by pi about y: its z points back along the approach.
    tool = _element(
        "site",
        name="tool",
        pos=(0.0, 0.0, gripper.reach),
        quat=(0, 0, 1, 0),
        size=(0.004,),
        rgba=(0, 0, 0, 0),
    )
    mount = _element(
        "body",
        _element("camera", name="wrist", fovy=60),
        name="tool_frame",
        pos=(0.0, 0.0, gripper.reach),
        quat=(0, 0, 1, 0),
    )
    fingers = _finger(gripper, "finger_left", -1, robot.joint_colour) + _finger(
        gripper, "finger_right", 1, robot.joint_colour
    )
    return palm_geom + tool + mount + fingers


def _link(robot: Robot, index: int, joint: Joint, inner: str) -> str:
    """The body behind one joint, with everything that follows it in `inner`."""
    radius = 0.052 - 0.004 * index
    below = robot.pedestal if index == 0 else robot.joints[index - 1].length
    hinge = _element(
        "joint",
        name=f"joint{index}",
        axis=_AXES[joint.axis],
        range=(-joint.limit, joint.limit),
        armature=0.1,
        damping=0.5,
    )
    hub = ""
    if joint.axis == "y":
        hub = _visual(
            type="cylinder",
            fromto=(0, -radius * 1.15, 0, 0, radius * 1.15, 0),
            size=(radius * 1.05,),
            rgba=_rgba(robot.joint_colour),
        )
    tube = _visual(
        type="capsule",
        fromto=(0.0, 0.0, 0.0, 0.0, 0.0, joint.length),
        size=(radius * 0.85,),
        rgba=_rgba(robot.arm_colour),
    )
    mass = 1.5 * joint.length / 0.2
    inertia = mass * joint.length**2 / 12 + 1e-3
    weight = _element(
        "inertial",
        pos=(0.0, 0.0, joint.length / 2),
        mass=mass,
        diaginertia=(inertia, inertia, 2e-3),
    )
    body = hinge + hub + tube + (weight if index < len(robot.joints) - 1 else "") + inner
    return _element("body", body, name=f"link{index}", pos=(0.0, 0.0, below), gravcomp=1)


def _arm(robot: Robot) -> str:
    inner = _element(
        "body", _hand(robot), name="flange", pos=(0.0, 0.0, robot.joints[-1].length), gravcomp=1
    )
    last = len(robot.joints) - 1
    for index in range(last, -1, -1):
        inner = _link(robot, index, robot.joints[index], inner)
    stand = _visual(
        type="cylinder",
        fromto=(0.0, 0.0, 0.0, 0.0, 0.0, robot.pedestal),
        size=(0.07,),
        rgba=_rgba(robot.joint_colour),
    )
    quat = _yaw_quat(robot.base_yaw)
    camera = _element("camera", name="front", fovy=45)
    return _element("body", stand + camera + inner, name="base", pos=robot.base_position, quat=quat)


def _yaw_quat(yaw: float) -> tuple[float, float, float, float]:
    from math import cos, sin

    return (cos(yaw / 2), 0.0, 0.0, sin(yaw / 2))


def _block(index: int) -> str:
    riser = _element(
        "geom",
        name=f"riser{index}",
        type="box",
        size=(0.05, 0.05, 0.02),
        pos=(0, 0, -1),
        contype=_TABLE,
        conaffinity=0,
        friction=(0.8, 0.01, 0.001),
        rgba=(0.85, 0.85, 0.83, 1),
    )
    block = _element(
        "body",
        _element("freejoint", name=f"block{index}"),
        _element(
            "geom",
            name=f"block{index}",
            type="box",
            size=(0.035, 0.02, 0.02),
            mass=0.06,
            contype=_BLOCK,
            conaffinity=_TABLE | _BLOCK,
            condim=4,
            friction=(0.8, 0.01, 0.001),
            solref=(0.01, 1.0),
        ),
        name=f"block{index}",
        pos=(0, 0, 0.5 + 0.2 * index),
    )
    return riser + block


def _post() -> str:
    """What stands in the way: it is drawn, and hitting it is judged by distance."""
    return _visual(
        name="post",
        type="cylinder",
        size=(POST_RADIUS, POST_HEIGHT / 2),
        pos=(0.0, 0.0, POST_HEIGHT / 2),
        rgba=(0.08, 0.08, 0.10, 1.0),
    )


def _actuators(robot: Robot) -> str:
    arm = "".join(
        _element(
            "position",
            name=f"joint{i}",
            joint=f"joint{i}",
            kp=joint.stiffness,
            dampratio=0.7,
            forcerange=(-joint.torque, joint.torque),
            ctrlrange=(-joint.limit, joint.limit),
        )
        for i, joint in enumerate(robot.joints)
    )
    fingers = "".join(
        _element(
            "position",
            name=name,
            joint=name,
            kp=800.0,
            kv=15.0,
            forcerange=(-robot.gripper.force, robot.gripper.force),
            ctrlrange=(-0.03, robot.gripper.opening / 2),
        )
        for name in ("finger_left", "finger_right")
    )
    return arm + fingers


def build_mjcf(robot: Robot, blocks: int, *, post: bool = False) -> str:
    """MJCF text of the robot, its table and `blocks` blocks, each with a riser to stand on.

    Args:
        robot: which.
        blocks: how many.
        post: whether a post stands on the table.
    """
    # The midphase trusts bounding volumes of the compiled sizes, and sizes change per episode.
    option = _element(
        "option",
        _element("flag", midphase="disable"),
        timestep=0.004,
        integrator="implicitfast",
        cone="elliptic",
        impratio=10,
        iterations=20,
        tolerance=1e-8,
    )
    visual = _element(
        "visual",
        _element("global", offwidth=MAX_OFFSCREEN, offheight=MAX_OFFSCREEN),
        _element("quality", offsamples=0, shadowsize=0, numslices=12, numstacks=8, numquads=2),
        _element("map", znear=NEAR, zfar=FAR),
        _element(
            "headlight", ambient=(0.45, 0.45, 0.45), diffuse=(0.25, 0.25, 0.25), specular=(0, 0, 0)
        ),
    )
    lights = _element(
        "light",
        pos=(0.6, 0.6, 2.0),
        dir=(-0.2, -0.25, -1),
        directional="true",
        diffuse=(0.5, 0.5, 0.5),
        specular=(0.1, 0.1, 0.1),
        castshadow="false",
    )
    table = _element(
        "geom",
        name="table",
        type="plane",
        size=(0.9, 0.9, 0.1),
        pos=(0.4, 0, 0),
        contype=_TABLE,
        conaffinity=0,
        friction=(0.8, 0.01, 0.001),
        rgba=_rgba(robot.table_colour),
    )
    floor = _visual(
        name="floor",
        type="plane",
        size=(6.0, 6.0, 0.1),
        pos=(0.4, 0, -0.7),
        rgba=_rgba(robot.floor_colour),
    )
    world = lights + table + floor + _arm(robot) + "".join(_block(i) for i in range(blocks))
    world += _post() if post else ""
    return _element(
        "mujoco",
        _element("compiler", angle="radian", autolimits="true"),
        option,
        visual,
        # extent 1 makes znear and zfar plain metres
        _element("statistic", extent=1.0, center=(0.4, 0, 0.2)),
        _element("worldbody", world),
        _element(
            "equality",
            _element("joint", joint1="finger_left", joint2="finger_right", solref=(0.008, 1.0)),
        ),
        _element("actuator", _actuators(robot)),
        model=robot.name,
    )
