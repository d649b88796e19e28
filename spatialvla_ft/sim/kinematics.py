"""Inverse kinematics of the arm: damped least squares on the joint angles."""

from __future__ import annotations

import mujoco
import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation

from spatialvla_ft.sim.robots import Robot

DAMPING = 0.02
POSTURE_GAIN = 0.05
MAX_JOINT_CHANGE = 0.4
"""Radians per iteration; keeps the linearisation honest far from the target."""


class ArmKinematics:
    """Forward and inverse kinematics of one model, on scratch data of its own.

    Poses are those of the tool point in the world frame: position (3,) metres and rotation (3, 3).
    """

    def __init__(self, model: mujoco.MjModel, robot: Robot):
        """`model` must come from `scene.build_mjcf(robot, ...)`."""
        self._model = model
        self._data = mujoco.MjData(model)
        joints = [model.joint(f"joint{i}") for i in range(len(robot.joints))]
        self.qpos = np.array([joint.qposadr[0] for joint in joints])
        self.dof = np.array([joint.dofadr[0] for joint in joints])
        self._limit = np.array([joint.limit for joint in robot.joints])
        self._home = np.array(robot.home)
        self._tool = model.site("tool").id
        self._jacobian = np.zeros((6, model.nv))

    def forward(
        self, angles: Float64[np.ndarray, " n"]
    ) -> tuple[Float64[np.ndarray, 3], Float64[np.ndarray, "3 3"]]:
        """World pose of the tool at these joint angles."""
        self._data.qpos[self.qpos] = angles
        mujoco.mj_kinematics(self._model, self._data)
        return (
            self._data.site_xpos[self._tool].copy(),
            self._data.site_xmat[self._tool].reshape(3, 3).copy(),
        )

    def inverse(
        self,
        position: Float64[np.ndarray, 3],
        rotation: Float64[np.ndarray, "3 3"],
        start: Float64[np.ndarray, " n"],
        iterations: int = 12,
        tolerance: float = 1e-5,
    ) -> Float64[np.ndarray, " n"]:
        """Joint angles near `start` that bring the tool to the pose, as closely as limits allow.

        A redundant arm drifts towards its home posture in the null space. Stops when position
        (metres) and rotation (radians) errors are below `tolerance`.
        """
        angles = np.array(start, dtype=np.float64)
        damping = DAMPING**2 * np.eye(6)
        identity = np.eye(len(angles))
        for _ in range(iterations):
            here, turned = self.forward(angles)
            error = np.concatenate(
                [position - here, Rotation.from_matrix(rotation @ turned.T).as_rotvec()]
            )
            if np.abs(error).max() < tolerance:
                break
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jacSite(
                self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._tool
            )
            J = self._jacobian[:, self.dof]
            # The damping fades with the error, so that the last millimetres converge quickly.
            inverse = J.T @ np.linalg.inv(J @ J.T + damping * min(1.0, 10 * np.abs(error).max()))
            posture = POSTURE_GAIN * (self._home - angles)
            change = inverse @ error + (identity - inverse @ J) @ posture
            change *= min(1.0, MAX_JOINT_CHANGE / max(np.abs(change).max(), 1e-12))
            angles = np.clip(angles + change, -self._limit, self._limit)
        return angles
