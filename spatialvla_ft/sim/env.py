"""The environment: reset by seed, act in end-effector deltas, observe by calibrated cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mujoco
import numpy as np
from jaxtyping import Float64, UInt8
from scipy.spatial.transform import Rotation

from spatialvla_ft.sim.cameras import CameraPose, episode_cameras, intrinsics
from spatialvla_ft.sim.kinematics import ArmKinematics
from spatialvla_ft.sim.layout import (
    COLOURS,
    RISER_HALF,
    BlockLayout,
    Layout,
    check_options,
    sample_layout,
)
from spatialvla_ft.sim.rendering import Renderer
from spatialvla_ft.sim.robots import Robot, get_robot
from spatialvla_ft.sim.scene import build_mjcf
from spatialvla_ft.sim.state import BlockState, Observation, StepResult, WorldState
from spatialvla_ft.sim.tasks import Task, get_task, is_collision, is_success, is_wrong_object

BLOCK_DENSITY = 500.0
"""kg / m3, about that of wood."""
RAMP_SHARE, RAMP_PIECES = 0.5, 5
"""The joints move during this share of a control step, then settle."""
MAX_LAG, MAX_LAG_ANGLE = 0.02, 0.1
"""Metres and radians that the commanded pose may run ahead of the real one."""
SETTLE_SECONDS = 0.1
# OpenCV camera axes to MuJoCo's (x right, y up, z backward).
_CV_TO_MUJOCO = np.diag([1.0, -1.0, -1.0])


class TabletopEnv:
    """A robot at a table with coloured blocks and a task said in words.

    Actions are (7,): dx dy dz in metres and roll pitch yaw in radians (scipy's lower-case 'xyz'),
    both in the robot's base frame and clipped to the robot's largest step, then the gripper,
    1 open to 0 closed. One action lasts 1 / `robot.control_hz` seconds.

    Attributes:
        robot, task: what is simulated.
        max_steps: actions per episode.
        instruction: what the robot is told in this episode.
        seed: of this episode.
        model, data: the physics, for tests and tools.
        layout: how the episode began.
    """

    def __init__(
        self,
        robot: Robot | str,
        task: Task | str,
        *,
        image_size: int = 64,
        cameras: Sequence[str] = ("front",),
        camera_mode: str = "fixed",
        distractors: int | Sequence[int] = 0,
        other_word: bool = False,
    ):
        """Build the model; ValueError names what is not allowed.

        Args:
            robot: a robot or its name.
            task: a task or its name.
            image_size: pixels a side of the observed pictures.
            cameras: which to render: "front", "wrist" or both.
            camera_mode: "fixed", or "random" for calibrated poses of their own per episode.
            distractors: blocks that the task does not name; of several numbers the episode of
                seed s has the one at place s modulo their count.
            other_word: name the first distractor instead of the block that the seed names, in a
                scene that is otherwise the same; the task must have no reference block.
        """
        self.robot = get_robot(robot) if isinstance(robot, str) else robot
        self.task = get_task(task) if isinstance(task, str) else task
        counts = check_options(
            self.robot, self.task, image_size, cameras, camera_mode, distractors, other_word
        )
        self.image_size = image_size
        self.cameras = tuple(cameras)
        self.camera_mode = camera_mode
        self.distractors = (distractors,) if isinstance(distractors, int) else tuple(distractors)
        self.other_word = other_word
        self.max_steps = round(self.task.seconds * self.robot.control_hz)
        self.seed = -1
        self.instruction = ""
        self._renderer: Renderer | None = None
        self._owns_renderer = False
        self._physics: dict[int, tuple[mujoco.MjModel, mujoco.MjData]] = {}
        self._take_physics(counts[0])

    # -- the episode ---------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed; equal seeds give bit-identical episodes."""
        rng = np.random.default_rng([seed, 7])
        self.seed = seed
        distractors = self.distractors[seed % len(self.distractors)]
        layout = sample_layout(self.robot, self.task, distractors, rng)
        if self.other_word:
            first, second, *rest = layout.blocks
            layout = replace(layout, blocks=(second, first, *rest))
        self.layout = layout
        self._take_physics(len(layout.blocks))
        self._poses = episode_cameras(self.robot, self.camera_mode, rng)
        self._place_scene(self.layout)
        mujoco.mj_resetData(self.model, self.data)
        self._place_bodies(self.layout)
        for _ in range(round(SETTLE_SECONDS / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        self._steps = 0
        self._success = False
        self._wrong_object = False
        self._collided = False
        self._start_heights = self.data.xpos[self._block_body][:, 2] - self._base[2]
        blocks = self.layout.blocks
        self.instruction = self.task.instruction(
            blocks[0].colour, blocks[1].colour if self.task.places else None
        )
        self._state: WorldState | None = None

    def step(self, action: Float64[np.ndarray, 7]) -> StepResult:
        """Execute one action; nothing moves once the episode is done."""
        action = self.clip(action)
        if not self.done:
            self._move(action)
            self._steps += 1
            state = self.state()
            self._collided = is_collision(state)
            self._wrong_object = not self._collided and is_wrong_object(self.task, state)
            failed = self._collided or self._wrong_object
            self._success = not failed and is_success(self.task, state)
        return StepResult(self._success, self._wrong_object, self.done, self._steps, self._collided)

    @property
    def steps(self) -> int:
        """Actions executed in this episode."""
        return self._steps

    @property
    def done(self) -> bool:
        """Solved, wrong object, collision or out of steps."""
        ended = self._success or self._wrong_object or self._collided
        return ended or self._steps >= self.max_steps

    def clip(self, action: Float64[np.ndarray, 7]) -> Float64[np.ndarray, 7]:
        """The action as this robot executes it; ValueError unless 7 finite numbers."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,) or not np.all(np.isfinite(action)):
            raise ValueError(
                f"action: got {action!r}, allowed are 7 finite numbers "
                "(x y z roll pitch yaw gripper)"
            )
        limit = np.array([self.robot.max_translation] * 3 + [self.robot.max_rotation] * 3)
        return np.append(np.clip(action[:6], -limit, limit), np.clip(action[6], 0.0, 1.0))

    # -- what can be seen ----------------------------------------------------------------------

    def observe(self) -> Observation:
        """Render the cameras and read the robot."""
        size = self.image_size
        views = {name: self._render(name, size, size) for name in self.cameras}
        state = self.state()
        return Observation(
            images={name: view[0] for name, view in views.items()},
            depth={name: view[1] for name, view in views.items()},
            intrinsics={name: self.intrinsics(name) for name in self.cameras},
            extrinsics={name: self.extrinsics(name) for name in self.cameras},
            state=np.concatenate([state.tool, state.rpy, [state.opening]]).astype(np.float32),
            instruction=self.instruction,
        )

    def state_rgb(
        self, width: int = 480, height: int = 480, camera: str = "front"
    ) -> UInt8[np.ndarray, "H W 3"]:
        """A picture for people, (height, width, 3)."""
        return self._render(camera, width, height)[0]

    def intrinsics(self, camera: str) -> Float64[np.ndarray, "3 3"]:
        """K of this episode's camera, pixels, at `image_size`."""
        return intrinsics(self._poses[camera].fov, self.image_size, self.image_size)

    def extrinsics(self, camera: str) -> Float64[np.ndarray, "4 4"]:
        """Camera (OpenCV axes) to robot base, metres, now."""
        index = self.model.camera(camera).id
        pose = np.eye(4)
        pose[:3, :3] = (
            self._base_rotation.T @ self.data.cam_xmat[index].reshape(3, 3) @ _CV_TO_MUJOCO
        )
        pose[:3, 3] = self._base_rotation.T @ (self.data.cam_xpos[index] - self._base)
        return pose

    def state(self) -> WorldState:
        """Everything true in the physics now, base frame; cached until the next step."""
        if self._state is None:
            self._state = self._read_state()
        return self._state

    def use(self, renderer: Renderer) -> None:
        """Draw with this renderer; all environments of a process may share one.

        Without it, one is opened when the first picture is wanted.
        """
        self.close()
        self._renderer, self._owns_renderer = renderer, False

    def close(self) -> None:
        """Free the renderer if this environment opened it."""
        if self._owns_renderer and self._renderer is not None:
            self._renderer.close()
        self._renderer, self._owns_renderer = None, False

    # -- inside --------------------------------------------------------------------------------

    def _take_physics(self, count: int) -> None:
        """The model of a scene with so many blocks; compiled when first wanted."""
        if count not in self._physics:
            mjcf = build_mjcf(self.robot, count, post=self.task.post)
            model = mujoco.MjModel.from_xml_string(mjcf)
            self._physics[count] = model, mujoco.MjData(model)
        self._count = count
        self.model, self.data = self._physics[count]
        self._arm = ArmKinematics(self.model, self.robot)
        self._index_model()

    def _index_model(self) -> None:
        model = self.model
        self._base = np.array(self.robot.base_position)
        self._base_rotation = Rotation.from_euler("z", self.robot.base_yaw).as_matrix()
        self._tool = model.site("tool").id
        self._fingers = [model.geom(f"finger_{side}_pad").id for side in ("left", "right")]
        self._robot_geoms = [*self._fingers, model.geom("palm").id]
        self._finger_qpos = [model.joint(f"finger_{side}").qposadr[0] for side in ("left", "right")]
        self._block_geom = [model.geom(f"block{i}").id for i in range(self._count)]
        self._block_body = [model.body(f"block{i}").id for i in range(self._count)]
        self._block_qpos = [model.joint(f"block{i}").qposadr[0] for i in range(self._count)]
        self._block_dof = [model.joint(f"block{i}").dofadr[0] for i in range(self._count)]
        self._riser_geom = [model.geom(f"riser{i}").id for i in range(self._count)]

    def _to_world(self, point: Sequence[float]) -> Float64[np.ndarray, 3]:
        return np.asarray(self._base_rotation @ np.array(point) + self._base)

    def _place_scene(self, layout: Layout) -> None:
        """Write sizes, colours, risers and cameras of the episode into the model."""
        model = self.model
        for i, block in enumerate(layout.blocks):
            geom, body = self._block_geom[i], self._block_body[i]
            half = np.array(block.half_size)
            model.geom_size[geom] = half
            model.geom_rbound[geom] = np.linalg.norm(half)
            model.geom_aabb[geom] = [0, 0, 0, *half]
            model.geom_rgba[geom] = [*COLOURS[block.colour], 1.0]
            mass = BLOCK_DENSITY * 8 * float(np.prod(half))
            square = half**2
            model.body_mass[body] = mass
            model.body_inertia[body] = mass / 3 * (square.sum() - square)
            self._place_riser(self._riser_geom[i], block)
        if layout.post is not None:
            model.geom_pos[model.geom("post").id, :2] = self._to_world([*layout.post, 0.0])[:2]
        for name, pose in self._poses.items():
            self._place_camera(name, pose)
        mujoco.mj_setConst(model, self.data)
        model.stat.extent = 1.0  # setConst estimates it anew, and clipping distances scale with it

    def _place_riser(self, geom: int, block: BlockLayout) -> None:
        model = self.model
        half = np.array([RISER_HALF, RISER_HALF, block.riser / 2])
        model.geom_size[geom] = np.maximum(half, 0.001)
        model.geom_rbound[geom] = np.linalg.norm(half)
        model.geom_aabb[geom] = [0, 0, 0, *np.maximum(half, 0.001)]
        # The world's table top is z = 0, the base may be higher: risers stand on the table.
        centre = self._to_world([*block.position, 0.0])
        centre[2] = block.riser / 2 if block.riser > 0 else -1.0
        model.geom_pos[geom] = centre
        model.geom_quat[geom] = _yaw_quat(self.robot.base_yaw)

    def _place_camera(self, name: str, pose: CameraPose) -> None:
        camera = self.model.camera(name)
        # Both hang on a body whose frame is the parent frame of the pose.
        camera.pos = pose.position
        x, y, z, w = Rotation.from_matrix(pose.rotation @ _CV_TO_MUJOCO).as_quat()
        camera.quat = [w, x, y, z]
        camera.fovy = np.rad2deg(pose.fov)

    def _place_bodies(self, layout: Layout) -> None:
        for block, address in zip(layout.blocks, self._block_qpos, strict=True):
            position = self._to_world([*block.position, 0.0])
            # A hair above: MuJoCo's box-box test is degenerate where faces touch exactly.
            position[2] = block.riser + block.half_size[2] + 0.0005
            self.data.qpos[address : address + 3] = position
            self.data.qpos[address + 3 : address + 7] = _yaw_quat(self.robot.base_yaw + block.yaw)
        turn = Rotation.from_euler("z", layout.tool_yaw).as_matrix()
        self._target = (self._to_world(layout.tool), self._base_rotation @ turn)
        self._angles = self._arm.inverse(*self._target, np.array(self.robot.home), iterations=100)
        self.data.qpos[self._arm.qpos] = self._angles
        self.data.ctrl[: len(self._angles)] = self._angles
        finger = self.task.start_opening * self.robot.gripper.opening / 2
        self.data.qpos[self._finger_qpos] = finger
        self.data.ctrl[len(self._angles) :] = self._finger_command(self.task.start_opening)

    def _finger_command(self, opening: float) -> float:
        """Servo target of each finger, metres; below zero when closed, so that it squeezes."""
        travel = self.robot.gripper.opening / 2
        return travel * opening - 0.03 * max(0.0, 1.0 - 2.0 * opening)

    def _move(self, action: Float64[np.ndarray, 7]) -> None:
        """Ramp the joints to the commanded pose, then let them settle; physics all along."""
        position, rotation = self._target
        real_position = self.data.site_xpos[self._tool]
        real_rotation = self.data.site_xmat[self._tool].reshape(3, 3)
        # The command continues from the last command, so that small sag does not add up,
        # unless something keeps the arm from following.
        lag = position - real_position
        turn = Rotation.from_matrix(rotation @ real_rotation.T).as_rotvec()
        position = real_position + lag * min(1.0, MAX_LAG / max(float(np.linalg.norm(lag)), 1e-12))
        turn *= min(1.0, MAX_LAG_ANGLE / max(float(np.linalg.norm(turn)), 1e-12))
        rotation = Rotation.from_rotvec(turn).as_matrix() @ real_rotation
        base = self._base_rotation
        delta = base @ Rotation.from_euler("xyz", action[3:6]).as_matrix() @ base.T
        self._target = (position + base @ action[:3], delta @ rotation)
        start = self._angles
        self._angles = self._arm.inverse(*self._target, start)

        substeps = round(1.0 / (self.robot.control_hz * self.model.opt.timestep))
        piece = max(1, round(substeps * RAMP_SHARE / RAMP_PIECES))
        self.data.ctrl[len(start) :] = self._finger_command(float(action[6]))
        for k in range(1, RAMP_PIECES + 1):
            self.data.ctrl[: len(start)] = start + (self._angles - start) * (k / RAMP_PIECES)
            mujoco.mj_step(self.model, self.data, piece)
        mujoco.mj_step(self.model, self.data, substeps - piece * RAMP_PIECES)
        # Positions and contacts that belong to the same instant.
        mujoco.mj_forward(self.model, self.data)
        self._state = None

    def _read_state(self) -> WorldState:
        data, base = self.data, self._base_rotation
        pairs = data.contact.geom[: data.ncon] if data.ncon else np.zeros((0, 2), int)
        opening = float(data.qpos[self._finger_qpos].sum()) / self.robot.gripper.opening
        return WorldState(
            tool=base.T @ (data.site_xpos[self._tool] - self._base),
            rotation=base.T @ data.site_xmat[self._tool].reshape(3, 3),
            opening=float(np.clip(opening, 0.0, 1.0)),
            blocks=tuple(self._read_block(i, pairs) for i in range(self._count)),
            post=None if self.layout.post is None else np.array(self.layout.post),
        )

    def _read_block(self, index: int, pairs: np.ndarray) -> BlockState:
        data, base = self.data, self._base_rotation
        layout, body = self.layout.blocks[index], self._block_body[index]
        geom, dof = self._block_geom[index], self._block_dof[index]
        mine = pairs[(pairs == geom).any(axis=1)]
        touching = set(mine[mine != geom].tolist())
        velocity = data.qvel[dof : dof + 6]
        return BlockState(
            colour=layout.colour,
            position=base.T @ (data.xpos[body] - self._base),
            rotation=base.T @ data.xmat[body].reshape(3, 3),
            half_size=np.array(layout.half_size),
            speed=float(np.linalg.norm(velocity[:3])),
            turning=float(np.linalg.norm(velocity[3:])),
            fingers=len(touching.intersection(self._fingers)),
            robot_contact=bool(touching.intersection(self._robot_geoms)),
            supported=bool(touching.difference(self._robot_geoms)),
            start_height=float(self._start_heights[index]),
            riser=layout.riser,
        )

    def _render(self, camera: str, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        if self._renderer is None:
            self._renderer = Renderer()
            self._owns_renderer = True
        return self._renderer.render(self.model, self.data, camera, width, height)


def _yaw_quat(yaw: float) -> list[float]:
    """MuJoCo quaternion (w x y z) of a turn about z."""
    return [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
