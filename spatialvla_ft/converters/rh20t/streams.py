"""Time series of a scene: reading, bringing to one rate, and from poses to actions.

Times are milliseconds. Poses are (T, 4, 4), tool to base, metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.spatial.transform import Rotation, Slerp

from spatialvla_ft.converters.rh20t.layout import RawScene, SkipSceneError, read_pickled
from spatialvla_ft.data.cards.ops import quat_to_euler

GripperField = Literal["gripper_command", "gripper_info"]
TURNING_POINT = 5.0
"""Millimetres by which a gripper must move back before it counts as opening or closing."""

Times = Int64[np.ndarray, " T"]
Quaternions = Float64[np.ndarray, "T 7"]
"""x y z, quaternion w first."""


def _of_scene(scene: RawScene, name: str) -> dict[str, Any]:
    path = scene.folder / "transformed" / name
    if not path.is_file():
        raise SkipSceneError(f"no transformed/{name}", scene.folder.name)
    content = read_pickled(path)
    if not isinstance(content, dict):
        raise SkipSceneError(f"transformed/{name} is no mapping of cameras", scene.folder.name)
    return content


def _sorted(
    times: list[int], values: list[Any], what: str
) -> tuple[Times, Float64[np.ndarray, "T n"]]:
    """By time, the first of equal times; whatever is not finite is left out."""
    if not times:
        raise SkipSceneError(f"{what} is empty")
    stacked = np.array(values, np.float64)
    when, first = np.unique(np.array(times, np.int64), return_index=True)
    stacked = stacked[first]
    good = np.isfinite(stacked).all(axis=1)
    return when[good], stacked[good]


def tcp_cameras(scene: RawScene, name: str) -> tuple[str, ...]:
    """Cameras under which transformed/`name` keeps poses."""
    return tuple(serial for serial, entries in _of_scene(scene, name).items() if len(entries))


def read_tcp(scene: RawScene, name: str, serial: str) -> tuple[Times, Quaternions]:
    """The stream kept under one camera in transformed/tcp.npy or tcp_base.npy."""
    entries = _of_scene(scene, name).get(serial, [])
    kept = [e for e in entries if e and e.get("tcp") is not None and len(e["tcp"]) == 7]
    return _sorted(
        [entry["timestamp"] for entry in kept],
        [entry["tcp"] for entry in kept],
        f"transformed/{name}",
    )


def read_gripper(scene: RawScene, serial: str, field: GripperField) -> tuple[Times, Any]:
    """Times and (T,) widths in mm, as the release counts them, kept under one camera."""
    entries = _of_scene(scene, "gripper.npy").get(serial, {})
    kept = {time: entry[field][0] for time, entry in entries.items() if entry and field in entry}
    times, widths = _sorted(
        [int(time) for time in kept],
        [[width] for width in kept.values()],
        f"{field} in transformed/gripper.npy",
    )
    full = scene.configuration.full_width
    if widths.max() > 1.15 * full or widths.min() < -0.15 * full:
        raise SkipSceneError(
            "gripper widths out of range",
            f"{widths.min():.0f} to {widths.max():.0f}, a {scene.configuration.gripper} has 0 to "
            f"{full:.0f}; for configurations 1 and 2 unpack the release's patch over the scenes",
        )
    return times, widths[:, 0]


def to_matrices(poses: Quaternions) -> Float64[np.ndarray, "T 4 4"]:
    """Matrices of poses; quaternions of any length but 0."""
    if (np.linalg.norm(poses[:, 3:], axis=1) < 1e-6).any():
        raise SkipSceneError("a quaternion is 0")
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    matrices[:, :3, :3] = Rotation.from_quat(poses[:, 3:], scalar_first=True).as_matrix()
    matrices[:, :3, 3] = poses[:, :3]
    return matrices


def integrate(
    start: Float64[np.ndarray, "4 4"], differences: Float64[np.ndarray, "T 4 4"]
) -> Float64[np.ndarray, "T 4 4"]:
    """Poses from differences: entry i leads from pose i to pose i + 1, in the base's axes."""
    poses = [start]
    for step in differences[:-1]:
        pose = np.eye(4)
        pose[:3, :3] = step[:3, :3] @ poses[-1][:3, :3]
        pose[:3, 3] = step[:3, 3] + poses[-1][:3, 3]
        poses.append(pose)
    return np.stack(poses)


def common_times(spans: Sequence[tuple[int, int]], hz: float) -> Float64[np.ndarray, " T"]:
    """Evenly spaced moments, milliseconds, that lie within all spans."""
    start, end = max(first for first, _ in spans), min(last for _, last in spans)
    count = int(np.floor((end - start) * hz / 1000 + 1e-6)) + 1
    if count < 2:
        raise SkipSceneError("too short", f"{max(end - start, 0)} ms are common to all streams")
    return start + np.arange(count) * 1000 / hz


def nearest(
    times: Times, at: Float64[np.ndarray, " T"], what: str, max_gap: float
) -> Int64[np.ndarray, " T"]:
    """Index of the sample nearest to each moment; none may be farther than `max_gap` ms."""
    after = np.clip(np.searchsorted(times, at), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        index = np.zeros(len(at), np.int64)
    else:
        index = after - (at - times[after - 1] <= times[after] - at)
    _check_gap(np.abs(times[index] - at), what, max_gap)
    return index.astype(np.int64)


def _check_gap(distance: Float64[np.ndarray, " T"], what: str, max_gap: float) -> None:
    if distance.max() > max_gap:
        raise SkipSceneError(
            "a stream has a gap", f"{what}: {distance.max():.0f} ms, allowed are {max_gap:.0f}"
        )


def interpolate(
    times: Times,
    poses: Float64[np.ndarray, "S 4 4"],
    at: Float64[np.ndarray, " T"],
    max_gap: float,
) -> Float64[np.ndarray, "T 4 4"]:
    """Poses at other moments: straight lines, and turns at constant speed."""
    nearest(times, at, "tool poses", max_gap)
    inside = np.clip(at, times[0], times[-1])
    out = np.tile(np.eye(4), (len(at), 1, 1))
    for axis in range(3):
        out[:, axis, 3] = np.interp(inside, times, poses[:, axis, 3])
    out[:, :3, :3] = Slerp(times, Rotation.from_matrix(poses[:, :3, :3]))(inside).as_matrix()
    return out


def is_open(widths: Float64[np.ndarray, " T"], full_width: float) -> Float32[np.ndarray, " T"]:
    """Whether the gripper is told to be open, 1 or 0, from its width over time in mm.

    It opens when the width has grown by TURNING_POINT over its lowest value since it closed, and
    the other way round, so that a gripper that closes on something wide counts as closed. Before
    the first event it is in the other state; without any, more than half open is open.
    """
    state = np.full(len(widths), np.nan, np.float32)
    low = high = float(widths[0])
    now = np.float32(np.nan)
    for t, width in enumerate(widths):
        low, high = min(low, width), max(high, width)
        if width >= low + TURNING_POINT and now != 1:
            now, high = np.float32(1), width
        elif width <= high - TURNING_POINT and now != 0:
            now, low = np.float32(0), width
        state[t] = now
    known = np.flatnonzero(~np.isnan(state))
    if not len(known):
        return np.full(len(widths), widths[0] > full_width / 2, np.float32)
    state[: known[0]] = 1 - state[known[0]]
    return state


def actions(
    base_from_tcp: Float64[np.ndarray, "T 4 4"], opened: Float32[np.ndarray, " T"]
) -> Float32[np.ndarray, "T-1 7"]:
    """What leads from each moment to the next, in the base's axes; the gripper's next state."""
    before, after = base_from_tcp[:-1], base_from_tcp[1:]
    turn = after[:, :3, :3] @ before[:, :3, :3].transpose(0, 2, 1)
    shift = after[:, :3, 3] - before[:, :3, 3]
    return np.concatenate([shift, roll_pitch_yaw(turn), opened[1:, None]], axis=1).astype(
        np.float32
    )


def roll_pitch_yaw(matrices: Float64[np.ndarray, "T n n"]) -> Float32[np.ndarray, "T 3"]:
    """Angles with R = Rz Ry Rx of rotations or poses, as dataset cards mean them."""
    quaternions = Rotation.from_matrix(matrices[:, :3, :3]).as_quat()
    return quat_to_euler(quaternions, "xyzw").astype(np.float32)


def camera_times(folder: Path) -> dict[str, Times]:
    """Times of the colour and depth frames of a camera, in the order of the video's frames."""
    path = folder / "timestamps.npy"
    if not path.is_file():
        raise SkipSceneError("no timestamps.npy", folder.name)
    content = read_pickled(path)
    if not isinstance(content, dict):
        content = {"color": content}
    times = {name: np.asarray(values, np.int64) for name, values in content.items()}
    for name, values in times.items():
        if len(values) == 0 or (np.diff(values) < 0).any():
            raise SkipSceneError("frame times are empty or unordered", f"{folder.name}, {name}")
    return times
