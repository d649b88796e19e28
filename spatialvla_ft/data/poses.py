"""Poses and their differences."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.transform import Rotation

from spatialvla_ft.data.ops import euler_xyz


def pose_difference(
    target: Float64[np.ndarray, "T 4 4"], current: Float64[np.ndarray, "T 4 4"]
) -> Float32[np.ndarray, "T 6"]:
    """(dx, dy, dz) and roll, pitch, yaw that lead from `current` to `target`, axes of the base.

    The rotation is R_target R_current^T, so that small turns add to the pose in the base frame.
    """
    turn = Rotation.from_matrix(target[:, :3, :3]) * Rotation.from_matrix(current[:, :3, :3]).inv()
    moved = target[:, :3, 3] - current[:, :3, 3]
    return np.concatenate([moved, euler_xyz(turn)], axis=1).astype(np.float32)


def pose_matrices(pose: Float32[np.ndarray, "T 6"]) -> Float64[np.ndarray, "T 4 4"]:
    """x, y, z, roll, pitch, yaw (scipy 'xyz') as homogeneous matrices."""
    matrices = np.tile(np.eye(4), (len(pose), 1, 1))
    matrices[:, :3, :3] = Rotation.from_euler("xyz", pose[:, 3:].astype(np.float64)).as_matrix()
    matrices[:, :3, 3] = pose[:, :3]
    return matrices
