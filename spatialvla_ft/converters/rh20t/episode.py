"""One scene of RH20T to one episode: synchronised pictures, cameras, poses, actions.

Frames of RH20T's videos, and how they are stored again.

A depth video is grey and twice as high as the picture: the upper half holds the low byte of each
pixel, the lower half the high byte.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import simplejpeg
from jaxtyping import Float32, Float64, Int64, UInt8, UInt16
from PIL import Image

from spatialvla_ft.converters.rh20t import streams
from spatialvla_ft.converters.rh20t.calibration import Calibration, check_chain, load_calibration
from spatialvla_ft.converters.rh20t.layout import (
    RawScene,
    SkipSceneError,
    read_metadata,
    whole_number,
)
from spatialvla_ft.inspection.tcp_kind import TcpVerdict, tcp_kind

DEPTH_SCALE = 1e-4
"""Metres per unit of a written depth image."""
JPEG_QUALITY = 95


def decode_frames(
    path: Path, wanted: Int64[np.ndarray, " n"]
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames with the numbers `wanted`, which ascend and may repeat, as RGB.

    The video is read once from its start: seeking is inexact in files whose frame times vary.
    """
    if not path.is_file():
        raise SkipSceneError(f"no {path.name}", path.parent.name)
    remaining = list(wanted)
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if not remaining:
                    return
                if number == remaining[0]:
                    picture = frame.to_ndarray(format="rgb24")
                    while remaining and remaining[0] == number:
                        remaining.pop(0)
                        yield picture
    except av.FFmpegError as error:
        raise SkipSceneError("a video cannot be read", f"{path}: {error}") from None
    if remaining:
        raise SkipSceneError(
            "a video is shorter than its timestamps", f"{path} lacks frame {remaining[0]}"
        )


def unpack_depth(frame: UInt8[np.ndarray, "H2 W 3"]) -> UInt16[np.ndarray, "H W"]:
    """Depth in the sensor's units from a frame of a depth video; 0 is unknown."""
    if frame.shape[0] % 2 or int(np.ptp(frame.astype(np.int16), axis=-1).max()) > 0:
        raise SkipSceneError(
            "a depth video is not packed depth",
            f"its frames are {frame.shape[1]} x {frame.shape[0]}; expected grey, twice the height",
        )
    low, high = np.split(frame[..., 0].astype(np.uint16), 2)
    return low + (high << 8)


def sensor_unit(serial: str) -> float:
    """Metres per unit of the sensor: an L515, whose serial starts with a letter, counts 0.25 mm."""
    return 0.00025 if serial[:1].isalpha() else 0.001


def encode_depth(depth: UInt16[np.ndarray, "H W"], unit: float) -> bytes:
    """16-bit PNG in DEPTH_SCALE; what is too far for 16 bits (6.55 m) becomes unknown."""
    scaled = np.rint(depth * (unit / DEPTH_SCALE))
    scaled[scaled > np.iinfo(np.uint16).max] = 0
    buffer = io.BytesIO()
    Image.fromarray(scaled.astype(np.uint16)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def encode_colour(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """JPEG without loss of colour resolution."""
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture), quality=JPEG_QUALITY, colorsubsampling="444"
    )
    return encoded


TcpKind = Literal["absolute", "difference"]


@dataclass(frozen=True)
class Options:
    """What to take from a scene.

    Attributes:
        cameras: slot -> "front" or "wrist" of the configuration, or a serial number.
        hz: steps per second.
        depth: whether every camera must bring depth.
        min_rating: the release rates 0 and 1 as failed, 2 to 9 by quality, -1 unknown.
        gripper: which of the release's widths, commanded or measured.
        max_gap: milliseconds to the nearest sample of every stream.
    """

    cameras: Mapping[str, str]
    hz: float = 5.0
    depth: bool = True
    min_rating: int = 2
    gripper: streams.GripperField = "gripper_command"
    max_gap: float = 200.0

    def __post_init__(self) -> None:
        for name, value in {"hz": self.hz, "max_gap": self.max_gap}.items():
            if not 0 < value < np.inf:
                raise ValueError(f"{name}: got {value}; it must be a positive number")


@dataclass(frozen=True)
class Prepared:
    """A scene that has what conversion needs, its streams still to be synchronised.

    Attributes:
        scene, metadata, instruction: what it shows.
        calibration: its cameras.
        reference: the fixed camera under which poses and gripper are read.
        serials: slot -> camera.
        times: (T,) milliseconds of the tool's stream.
        tcp: (T, 7) the stream as stored, whatever it means.
        verdict: what the statistic says that it means.
    """

    scene: RawScene
    metadata: dict[str, Any]
    instruction: str
    calibration: Calibration
    reference: str
    serials: Mapping[str, str]
    times: streams.Times
    tcp: streams.Quaternions
    verdict: TcpVerdict


@dataclass(frozen=True)
class Episode:
    """One episode as RLDS will hold it.

    Attributes:
        scene: where it comes from.
        metadata: the dataset's `episode_metadata`.
        instruction: what the robot was told.
        observations: per step, the dataset's `observation` with encoded images.
        actions: (T, 7) robot units.
        chain_error: metres and radians between recorded poses and those through a camera.
    """

    scene: RawScene
    metadata: Mapping[str, Any]
    instruction: str
    observations: tuple[dict[str, Any], ...]
    actions: Float32[np.ndarray, "T 7"]
    chain_error: tuple[float, float]


def prepare(scene: RawScene, tasks: Mapping[str, str], options: Options) -> Prepared:
    """Read everything but pictures, and ask the statistic what the tool's stream is.

    Raises:
        SkipSceneError: the scene cannot be converted; the reason says why.
    """
    if scene.human:
        raise SkipSceneError("a person's demonstration", scene.folder.name)
    metadata = read_metadata(scene)
    rating, calib = whole_number(metadata, "rating"), whole_number(metadata, "calib")
    if rating < options.min_rating:
        raise SkipSceneError(f"rated below {options.min_rating}", f"{scene.folder.name}: {rating}")
    if calib == -1:
        raise SkipSceneError("not calibrated (calib: -1)", scene.folder.name)
    if scene.task not in tasks:
        raise SkipSceneError("no instruction for the task", scene.task)
    folder = scene.folder.parent / "calib" / str(calib)
    calibration = load_calibration(folder, scene.configuration)
    serials = {slot: find_camera(scene, wish) for slot, wish in options.cameras.items()}
    for serial in serials.values():
        if not calibration.knows(serial):
            raise SkipSceneError("a camera is not calibrated", f"{serial} in {folder}")
    reference = _reference(scene, calibration)
    times, tcp = streams.read_tcp(scene, "tcp_base.npy", reference)
    return Prepared(
        scene,
        metadata,
        tasks[scene.task],
        calibration,
        reference,
        serials,
        times,
        tcp,
        tcp_kind(tcp, times / 1000),
    )


def find_camera(scene: RawScene, wish: str) -> str:
    """Serial number of a camera that has a colour video in this scene."""
    robot = scene.configuration
    candidates = {"front": (robot.front,), "wrist": robot.in_hand}.get(wish, (wish,))
    for serial in candidates:
        if serial in scene.serials:
            return serial
    raise SkipSceneError(
        f"no camera {wish!r}",
        f"{scene.folder.name} has {list(scene.serials)}, wanted is one of {list(candidates)}",
    )


def _reference(scene: RawScene, calibration: Calibration) -> str:
    """The front camera if it keeps poses, else the first fixed camera that does."""
    robot = scene.configuration
    both = set(streams.tcp_cameras(scene, "tcp.npy")) & set(
        streams.tcp_cameras(scene, "tcp_base.npy")
    )
    fixed = sorted(s for s in both if s not in robot.in_hand and calibration.knows(s))
    if not fixed:
        raise SkipSceneError("no fixed camera keeps tool poses", scene.folder.name)
    return robot.front if robot.front in fixed else fixed[0]


def base_from_tcp(
    prepared: Prepared, kind: TcpKind
) -> tuple[Float64[np.ndarray, "T 4 4"], tuple[float, float]]:
    """The tool's poses in the base frame at the stream's times, and how well they are confirmed.

    Differences start from the tool's pose in the reference camera.

    Raises:
        SkipSceneError: the poses disagree with those in the reference camera's frame.
    """
    serial = prepared.reference
    camera_times, in_camera = streams.read_tcp(prepared.scene, "tcp.npy", serial)
    shared, ours, theirs = np.intersect1d(prepared.times, camera_times, return_indices=True)
    if len(shared) < 2 or (kind == "difference" and ours[0] != 0):
        raise SkipSceneError("tcp.npy and tcp_base.npy share no times", prepared.scene.folder.name)
    tool_in_camera = streams.to_matrices(in_camera[theirs])
    fixed = prepared.calibration.base_from_camera(serial, tool_in_camera)
    through_camera = fixed @ tool_in_camera
    poses = streams.to_matrices(prepared.tcp)
    if kind == "difference":
        poses = streams.integrate(through_camera[0], poses)
    return poses, check_chain(poses[ours], through_camera)


def convert_scene(prepared: Prepared, kind: TcpKind, options: Options) -> Episode:
    """Synchronise, decode and encode one scene.

    Raises:
        SkipSceneError: the scene cannot be converted; the reason says why.
    """
    scene, serials = prepared.scene, prepared.serials
    poses, chain_error = base_from_tcp(prepared, kind)
    frames = {slot: streams.camera_times(scene.camera(s)) for slot, s in serials.items()}
    gripper_times, widths = streams.read_gripper(scene, prepared.reference, options.gripper)
    spans = [(times["color"][0], times["color"][-1]) for times in frames.values()]
    spans += [(prepared.times[0], prepared.times[-1]), (gripper_times[0], gripper_times[-1])]
    finish = whole_number(prepared.metadata, "finish_time")
    if finish > 0:
        spans.append((min(first for first, _ in spans), finish))
    at = streams.common_times(spans, options.hz)
    tool = streams.interpolate(prepared.times, poses, at, options.max_gap)
    streams.nearest(gripper_times, at, "gripper", options.max_gap)
    width = np.interp(at, gripper_times, widths)
    full = scene.configuration.full_width
    opened = streams.is_open(width, full)
    euler = streams.roll_pitch_yaw(tool)
    opening = np.clip(width / full, 0, 1)[:, None]
    state = np.concatenate([tool[:, :3, 3], euler, opening], axis=1).astype(np.float32)
    # The last moment only says where the last action leads.
    observations: list[dict[str, Any]] = [{"state": row} for row in state[:-1]]
    for slot, times in frames.items():
        _add_camera(observations, prepared, poses, slot, times, at[:-1], options)
    return Episode(
        scene,
        _episode_metadata(prepared, serials),
        prepared.instruction,
        tuple(observations),
        streams.actions(tool, opened),
        chain_error,
    )


def _add_camera(
    observations: list[dict[str, Any]],
    prepared: Prepared,
    poses: Float64[np.ndarray, "S 4 4"],
    slot: str,
    times: Mapping[str, streams.Times],
    at: Float64[np.ndarray, " T"],
    options: Options,
) -> None:
    """Pictures, K and pose of one camera; a moving camera's pose is that of the picture's time."""
    serial = prepared.serials[slot]
    folder = prepared.scene.camera(serial)
    rows = np.array(streams.nearest(times["color"], at, f"camera {serial}", options.max_gap))
    if len(np.unique(rows)) < 0.9 * len(rows):
        raise SkipSceneError(
            "a camera is slower than hz",
            f"camera {serial} takes {1000 / np.median(np.diff(times['color'])):.1f} pictures a "
            f"second, hz is {options.hz:g}",
        )
    taken = times["color"][rows].astype(np.float64)
    tool = streams.interpolate(prepared.times, poses, taken, options.max_gap)
    extrinsics = prepared.calibration.base_from_camera(serial, tool).astype(np.float32)
    colour = decode_frames(folder / "color.mp4", rows)
    for observation, picture, pose in zip(observations, colour, extrinsics, strict=True):
        height, width = picture.shape[:2]
        k = prepared.calibration.k_of(serial, width, height)
        observation |= {
            f"image_{slot}": encode_colour(picture),
            f"intrinsics_{slot}": k.astype(np.float32),
            f"extrinsics_{slot}": pose,
        }
    if not options.depth:
        return
    if "depth" not in times:
        raise SkipSceneError("no depth times in timestamps.npy", f"camera {serial}")
    rows = np.array(
        streams.nearest(times["depth"], taken, f"depth of camera {serial}", options.max_gap)
    )
    deep = decode_frames(folder / "depth.mp4", rows)
    unit = sensor_unit(serial)
    for observation, frame in zip(observations, deep, strict=True):
        depth = unpack_depth(frame)
        if depth.shape != (height, width):
            raise SkipSceneError(
                "depth and colour differ in size", f"camera {serial}: {depth.shape[::-1]}"
            )
        observation[f"depth_{slot}"] = encode_depth(depth, unit)


def _episode_metadata(prepared: Prepared, serials: Mapping[str, str]) -> dict[str, Any]:
    scene, metadata = prepared.scene, prepared.metadata
    rating = whole_number(metadata, "rating")
    return {
        "folder": scene.folder.name,
        "configuration": scene.configuration.number,
        "robot": scene.configuration.robot,
        "gripper": scene.configuration.gripper,
        "task": scene.task,
        "user": scene.user,
        "scene": scene.scene,
        "rating": rating,
        "success": rating >= 2,
        "calibration": whole_number(metadata, "calib"),
        "calib_quality": whole_number(metadata, "calib_quality"),
        "cameras": ", ".join(f"{slot}={serial}" for slot, serial in serials.items()),
    }
