"""A synthetic RH20T scene in exactly the released layout, seen by pinhole cameras in NumPy.

A chequered table (z = 0 of the aligned base frame) with a box on it. Everything is built forward
from known poses, the other way round than the converter goes: it starts at the base and ends at
calibration files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

from spatialvla_ft.converters.rh20t.layout import configurations

START = 1_650_000_000_000
CALIB = 1_649_900_000_123
TILE = 0.05
BOX = np.array([[0.42, -0.08, 0.0], [0.52, 0.04, 0.06]])
L515 = "f0172289"
COLOURS = np.array([[40, 40, 60], [220, 210, 190], [200, 60, 40], [60, 90, 200]], np.uint8)
INSTRUCTIONS = {"task_0001": "Press the button", "task_0002": "Move the block"}


def pose(rotation, position):
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation.as_matrix(), position
    return out


def looking_at(eye, target):
    """base_from_camera of a camera at `eye`, OpenCV axes, upright."""
    forward = np.subtract(target, eye)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right = right / np.linalg.norm(right)
    out = np.eye(4)
    out[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    out[:3, 3] = eye
    return out


@dataclass
class Truth:
    """What the files were made from."""

    folder: Path
    size: tuple[int, int]
    k: dict[str, np.ndarray]
    fixed: dict[str, np.ndarray]
    tcp_from_camera: dict[str, np.ndarray]
    times: dict[str, np.ndarray]
    path: CubicSpline
    turns: CubicSpline

    def tool(self, ms):
        """base_from_tcp, both aligned."""
        seconds = (ms - START) / 1000
        down = Rotation.from_euler("xz", [np.pi, 0.3])
        return pose(Rotation.from_rotvec(self.turns(seconds)) * down, self.path(seconds))

    def camera(self, serial, ms):
        """base_from_camera."""
        if serial in self.fixed:
            return self.fixed[serial]
        return self.tool(ms) @ self.tcp_from_camera[serial]

    def width(self, ms, full):
        """Opening of the gripper: open, closed on something wide, open again."""
        s = (np.asarray(ms) - START) / 1000
        return full * np.interp(s, [0, 1.0, 1.3, 2.2, 2.5, 9], [1, 1, 0.5, 0.5, 1, 1])


def render(k, base_from_camera, size):
    """RGB (H, W, 3) and depth along the optical axis (H, W) in metres; 0 where nothing is hit."""
    width, height = size
    v, u = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], axis=-1)
    rays = rays @ base_from_camera[:3, :3].T
    eye = base_from_camera[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        table = -eye[2] / rays[..., 2]
        near, far = np.sort(((BOX[:, None, None] - eye) / rays), axis=0)
    near, far = near.max(axis=-1), far.min(axis=-1)
    table = np.where(table > 0, table, np.inf)
    box = np.where((near <= far) & (near > 0), near, np.inf)
    depth = np.minimum(table, box)
    depth = np.where(depth < 6, depth, 0)
    points = eye + rays * depth[..., None]
    tiles = np.floor(points[..., :2] / TILE + 1e-9).astype(int).sum(axis=-1) % 2
    picture = COLOURS[tiles + 2 * (box < table)]
    picture[depth == 0] = 0
    return picture, depth


def write_video(path, frames, codec, pix_fmt, options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for frame in frames:
            kind = "gray" if frame.ndim == 2 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=kind)))
        container.mux(stream.encode(None))


def packed(depth, unit):
    """Low bytes above high bytes."""
    units = np.rint(depth / unit).astype(np.uint16)
    return np.concatenate([units & 255, units >> 8]).astype(np.uint8)


def quaternion(matrix):
    """x y z, w first, with the sign that a converter must not rely on."""
    quat = Rotation.from_matrix(matrix[:3, :3]).as_quat(scalar_first=True)
    return np.concatenate([matrix[:3, 3], -quat])


def calib_tcp(robot_from_tcp, how):
    """calib/<time>/tcp.npy as each robot writes it."""
    position, rotation = robot_from_tcp[:3, 3], Rotation.from_matrix(robot_from_tcp[:3, :3])
    if how == "quaternion":
        return quaternion(robot_from_tcp)
    if how == "euler_mm":
        return np.concatenate([position * 1000, rotation.as_euler("xyz")])
    flip = Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))
    return np.concatenate([position, (rotation * flip).as_rotvec()])


def write_scene(
    root,
    number,
    *,
    kind="absolute",
    size=(160, 90),
    frames=32,
    depth=True,
    videos=True,
    task="task_0001",
    user=1,
    still=False,
    seed=0,
    metadata=(),
):
    """One scene of configuration `number` under root/RH20T_cfgN; returns the `Truth`.

    `videos`: whether to film, or the serial numbers of the cameras that film.
    """
    rng = np.random.default_rng([seed, number])
    robot = configurations()[number]
    home = Path(root) / f"RH20T_cfg{number}"
    folder = home / f"{task}_user_{user:04d}_scene_0001_cfg_{number:04d}"
    in_hand = robot.in_hand[:-1]
    fixed = {
        robot.front: looking_at([1.05, 0.25, 0.6], [0.45, 0, 0]),
        L515: looking_at([0.3, -0.7, 0.7], [0.45, 0, 0]),
    }
    knots = np.arange(0, 8.1, 0.8)
    wander = 0 if still else 1
    truth = Truth(
        folder,
        size,
        k={},
        fixed=fixed,
        tcp_from_camera={},
        times={},
        path=CubicSpline(
            knots, [0.45, -0.05, 0.3] + wander * rng.uniform(-0.06, 0.06, (len(knots), 3))
        ),
        turns=CubicSpline(knots, wander * rng.uniform(-0.15, 0.15, (len(knots), 3))),
    )

    # The robot's own frames: the release's aligned ones are turned against them.
    calib_tool = pose(Rotation.from_euler("xyz", [3.0, 0.1, -0.4]), [0.4, 0.05, 0.35])
    robot_from_tcp = robot.align_base @ calib_tool @ np.linalg.inv(robot.align_tcp)
    base_from_marker = pose(Rotation.from_euler("xyz", [0.05, -0.02, 0.7]), [0.5, 0.1, 0.002])
    at_calibration = dict(fixed)
    for i, serial in enumerate(in_hand):
        shift = pose(Rotation.from_rotvec([0, 0.1 * i, 0.2 * i]), [-0.06 * i, 0.02 * i, 0])
        in_tool = np.linalg.inv(robot.align_tcp) @ np.linalg.inv(robot.camera_from_tcp) @ shift
        truth.tcp_from_camera[serial] = in_tool
        at_calibration[serial] = calib_tool @ in_tool
    intrinsics, extrinsics = {}, {}
    for serial, base_from_camera in at_calibration.items():
        f, cx, cy = rng.uniform([880, 620, 340], [930, 660, 380])
        # Full-size pictures; the release counts the first pixel's centre as 0.
        matrix = np.array([[f, 0, cx, 0], [0, f * 1.01, cy, 0], [0, 0, 1, 0]])
        intrinsics[serial] = matrix
        half = size[0] / 1280
        truth.k[serial] = np.array(
            [
                [f * half, 0, (cx + 0.5) * half],
                [0, f * 1.01 * half, (cy + 0.5) * half],
                [0, 0, 1],
            ]
        )
        extrinsics[serial] = (np.linalg.inv(base_from_camera) @ base_from_marker)[None]
    calib = home / "calib" / str(CALIB)
    calib.mkdir(parents=True, exist_ok=True)
    np.save(calib / "intrinsics.npy", intrinsics, allow_pickle=True)
    np.save(calib / "extrinsics.npy", extrinsics, allow_pickle=True)
    np.save(calib / "tcp.npy", calib_tcp(robot_from_tcp, robot.calib_tcp))
    np.save(calib / "devices.npy", np.array(list(at_calibration)))

    transformed = folder / "transformed"
    transformed.mkdir(parents=True)
    tcp, tcp_base, gripper = {}, {}, {}
    for i, (serial, base_from_calibrated) in enumerate(at_calibration.items()):
        ticks = START + 100 * np.arange(frames) + 7 * i + rng.integers(-9, 10, frames)
        truth.times[serial] = ticks
        poses = [truth.tool(ms) for ms in ticks]
        stored = [quaternion(p) for p in poses]
        if kind == "difference":
            ahead = [*poses[1:], truth.tool(ticks[-1] + 100)]
            stored = [
                np.concatenate(
                    [
                        b[:3, 3] - a[:3, 3],
                        Rotation.from_matrix(b[:3, :3] @ a[:3, :3].T).as_quat(scalar_first=True),
                    ]
                )
                for a, b in zip(poses, ahead, strict=True)
            ]
        camera_from_base = np.linalg.inv(base_from_calibrated)
        extra = {"robot_ft": np.zeros(6)}
        tcp_base[serial] = [
            {"timestamp": int(ms), "tcp": value, **extra}
            for ms, value in zip(ticks, stored, strict=True)
        ]
        tcp[serial] = [
            {"timestamp": int(ms), "tcp": quaternion(camera_from_base @ p), **extra}
            for ms, p in zip(ticks, poses, strict=True)
        ]
        gripper[serial] = {
            int(ms): {
                "gripper_command": [float(truth.width(ms, robot.full_width)), 50, 100],
                "gripper_info": [robot.full_width - 1.0, 0, 0],
            }
            for ms in ticks
        }
        write_camera(truth, serial, depth, videos if isinstance(videos, bool) else serial in videos)
    if kind == "absolute":
        tcp_base[robot.front][5]["tcp"] = None  # the release has such holes
    np.save(transformed / "tcp.npy", tcp, allow_pickle=True)
    np.save(transformed / "tcp_base.npy", tcp_base, allow_pickle=True)
    np.save(transformed / "gripper.npy", gripper, allow_pickle=True)
    content = {
        "calib": CALIB,
        "calib_quality": 3,
        "rating": 7,
        "finish_time": int(START + 100 * frames),
        **dict(metadata),
    }
    (folder / "metadata.json").write_text(json.dumps(content))
    return truth


def write_camera(truth, serial, depth, videos):
    folder = truth.folder / f"cam_{serial}"
    folder.mkdir()
    ticks = truth.times[serial]
    depth_ticks = ticks + 3
    np.save(
        folder / "timestamps.npy",
        {"color": ticks.tolist(), "depth": depth_ticks.tolist()},
        allow_pickle=True,
    )
    if not videos:
        (folder / "color.mp4").touch()
        return
    unit = 0.00025 if serial == L515 else 0.001
    seen = [render(truth.k[serial], truth.camera(serial, ms), truth.size) for ms in ticks]
    write_video(folder / "color.mp4", [rgb for rgb, _ in seen], "libx264", "yuv420p", {"crf": "8"})
    if depth:
        deep = [packed(z, unit) for _, z in seen]
        write_video(folder / "depth.mp4", deep, "ffv1", "gray", {})


def write_tasks(root):
    path = Path(root) / "task_description.json"
    path.write_text(
        json.dumps({key: {"task_description_english": v} for key, v in INSTRUCTIONS.items()})
    )
    return path


def points_in_base(k, base_from_camera, depth):
    """(H, W, 3) of every pixel with depth; pixel centres at +0.5."""
    height, width = depth.shape
    v, u = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(k).T
    return rays * depth[..., None] @ base_from_camera[:3, :3].T + base_from_camera[:3, 3]


def distance_to_surfaces(points):
    """(N,) metres from the table or, for points on the box, from its nearest side; and which."""
    on_box = ((points > BOX[0] - 2e-3) & (points < BOX[1] + 2e-3)).all(axis=1)
    sides = np.abs(points[:, None] - BOX).min(axis=(1, 2))
    return np.where(on_box, sides, np.abs(points[:, 2])), on_box
