"""Cameras of a scene: K of the pictures as released, and poses in the robot's base.

The calibration photographs a marker with all cameras while the tool's pose is known. Matrices are
named a_from_b: they take points of frame b to frame a. `base` and `tcp` are the frames that the
release aligns across robots, in which `transformed/tcp_base.npy` is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation

from spatialvla_ft.converters.rh20t.layout import Configuration, SkipSceneError, read_pickled

RECORDED_SIZE = (1280, 720)
"""Width and height for which intrinsics.npy holds; released pictures may be half as large."""
MAX_POSITION_ERROR, MAX_ROTATION_ERROR = 0.01, np.deg2rad(3.0)
"""By how much two ways to the tool's pose may differ in the median: metres, radians."""

Pose = Float64[np.ndarray, "4 4"]
Poses = Float64[np.ndarray, "T 4 4"]


@dataclass(frozen=True)
class Calibration:
    """One calibration of one robot.

    Attributes:
        intrinsics: serial -> (3, 3) K of a picture of RECORDED_SIZE, pixel centres at +0.5.
        camera_from_marker: serial -> (4, 4), metres.
        marker_from_base: (4, 4).
        configuration: the robot.
    """

    intrinsics: Mapping[str, Float64[np.ndarray, "3 3"]]
    camera_from_marker: Mapping[str, Pose]
    marker_from_base: Pose
    configuration: Configuration

    def knows(self, serial: str) -> bool:
        """Whether the camera was calibrated."""
        return serial in self.intrinsics and serial in self.camera_from_marker

    def k_of(self, serial: str, width: int, height: int) -> Float64[np.ndarray, "3 3"]:
        """K of the camera's picture resized to `width` x `height`."""
        full_width, full_height = RECORDED_SIZE
        if width * full_height != height * full_width:
            raise SkipSceneError(
                "pictures of another shape",
                f"camera {serial} has {width} x {height}, calibrated for "
                f"{full_width} x {full_height}",
            )
        scale = width / full_width
        scaled: Float64[np.ndarray, "3 3"] = np.diag([scale, scale, 1.0]) @ self.intrinsics[serial]
        return scaled

    def base_from_camera(self, serial: str, base_from_tcp: Poses) -> Poses:
        """Pose of a camera at T moments at which the tool's pose is known.

        A camera on the arm follows the tool; any other stays where it was calibrated.
        """
        camera_from_base = self.camera_from_marker[serial] @ self.marker_from_base
        if serial not in self.configuration.in_hand:
            return np.repeat(np.linalg.inv(camera_from_base)[None], len(base_from_tcp), axis=0)
        first = self.configuration.in_hand[0]
        camera_from_first = self.camera_from_marker[serial] @ np.linalg.inv(
            self.camera_from_marker[first]
        )
        camera_from_tcp = (
            camera_from_first @ self.configuration.camera_from_tcp @ self.configuration.align_tcp
        )
        poses: Poses = base_from_tcp @ np.linalg.inv(camera_from_tcp)
        return poses


def load_calibration(folder: Path, configuration: Configuration) -> Calibration:
    """Read calib/<time>/.

    Raises:
        SkipSceneError: files are missing, or the in-hand camera that ties marker and base.
    """
    for name in ("intrinsics.npy", "extrinsics.npy", "tcp.npy"):
        if not (folder / name).is_file():
            raise SkipSceneError("the calibration is missing", f"{folder / name}")
    intrinsics = {
        serial: _centred(np.asarray(matrix, np.float64)[:3, :3])
        for serial, matrix in read_pickled(folder / "intrinsics.npy").items()
    }
    camera_from_marker = {
        serial: np.asarray(matrix, np.float64).reshape(4, 4)
        for serial, matrix in read_pickled(folder / "extrinsics.npy").items()
    }
    first = configuration.in_hand[0]
    if first not in camera_from_marker:
        raise SkipSceneError(
            "the calibration lacks the in-hand camera",
            f"{folder} has {sorted(camera_from_marker)}, not {first}",
        )
    base_from_tcp = calib_tcp_pose(read_pickled(folder / "tcp.npy"), configuration)
    marker_from_base = (
        np.linalg.inv(camera_from_marker[first])
        @ configuration.camera_from_tcp
        @ np.linalg.inv(base_from_tcp)
        @ configuration.align_base
    )
    return Calibration(intrinsics, camera_from_marker, marker_from_base, configuration)


def _centred(matrix: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3 3"]:
    """The release counts the first pixel's centre as 0, we as 0.5."""
    matrix = matrix.copy()
    matrix[:2, 2] += 0.5
    return matrix


def calib_tcp_pose(values: np.ndarray, configuration: Configuration) -> Pose:
    """The tool in the robot's own base frame at calibration, from calib/<time>/tcp.npy."""
    values = np.asarray(values, np.float64).ravel()
    kind = configuration.calib_tcp
    length = 7 if kind == "quaternion" else 6
    if len(values) < length or not np.isfinite(values).all() or not values.any():
        raise SkipSceneError(
            "the calibration's tool pose is invalid", f"{values}, expected {length} numbers, {kind}"
        )
    position = values[:3]
    if kind == "quaternion":
        rotation = Rotation.from_quat(values[3:7], scalar_first=True)
    elif kind == "rotvec_flipped":
        rotation = Rotation.from_rotvec(values[3:6]) * Rotation.from_euler("x", np.pi)
    else:
        position = position / 1000
        rotation = Rotation.from_euler("xyz", values[3:6])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.as_matrix(), position
    return pose


def check_chain(base_from_tcp: Poses, through_camera: Poses) -> tuple[float, float]:
    """Median distance (m) and angle (rad) between the tool's pose as recorded and through a camera.

    The release gives the tool in the base frame and in every camera's; if our camera poses are
    right, both ways agree.

    Raises:
        SkipSceneError: they do not.
    """
    offset = base_from_tcp[:, :3, 3] - through_camera[:, :3, 3]
    turn = base_from_tcp[:, :3, :3] @ through_camera[:, :3, :3].transpose(0, 2, 1)
    distance = float(np.median(np.linalg.norm(offset, axis=1)))
    angle = float(np.median(Rotation.from_matrix(turn).magnitude()))
    if not (distance <= MAX_POSITION_ERROR and angle <= MAX_ROTATION_ERROR):
        raise SkipSceneError(
            "calibration and tool poses disagree",
            f"by {distance * 1000:.1f} mm and {np.rad2deg(angle):.1f} degrees; allowed are "
            f"{MAX_POSITION_ERROR * 1000:.0f} mm and {np.rad2deg(MAX_ROTATION_ERROR):.0f} degrees",
        )
    return distance, angle
