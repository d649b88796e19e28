"""Conversions that begin with a LeRobot folder, and those that go round: what stays, what is said.

The oracle is what was written by hand: numbers in pictures, depth, K, joints, words.
"""

import json

import numpy as np
from lerobot_write import (
    FPS,
    HEIGHT,
    JOINTS,
    LENGTHS,
    TASKS,
    WIDTH,
    action_of,
    depth_of,
    number_of,
    numbered,
    picture_number,
    write,
)
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.converters.lerobot_writer import LeRobotWriter
from spatialvla_ft.converters.video_writer import CODECS, DEPTH_CODEC
from spatialvla_ft.data import build_index, open_dataset
from spatialvla_ft.data.lerobot.info import Feature

FRAMES = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]
KEY = "observation.images.front"
CLOCK = 1.7e9 + 1 / 3
"""Seconds that 32 bits cannot hold."""


def convert(*args):
    done = CliRunner().invoke(app, ["data", "convert", *map(str, args), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def write_ours(folder):
    """Joints by name, video, depth, K and camera pose, by our own writer."""
    names = ("height", "width", "channels")
    vector = Feature("action", "float32", (4,), JOINTS, {})
    picture = Feature(KEY, "video", (HEIGHT, WIDTH, 3), names, {"video.codec": "h264"})
    info = {"video.pix_fmt": "gray16le", "video.is_depth_map": True}
    features = {
        "action": vector,
        "observation.state": Feature("observation.state", "float32", (4,), JOINTS, {}),
        KEY: picture,
        "depth.front": Feature("depth.front", "video", (HEIGHT, WIDTH, 1), names, info),
        "front_camera_intrinsics": Feature("K", "float64", (4,), ("fx", "fy", "cx", "cy"), {}),
        "front_camera_extrinsics": Feature("X", "float64", (16,), None, {}),
        "clock": Feature("clock", "float64", (1,), None, {}),
    }
    codecs = {KEY: CODECS["h264"], "depth.front": DEPTH_CODEC}
    with LeRobotWriter(folder, fps=FPS, features=features, codecs=codecs) as writer:
        for e, length in enumerate(LENGTHS):
            actions = np.stack([action_of(e, t) for t in range(length)])
            writer.add_episode(
                {
                    "action": actions,
                    "observation.state": actions - 1,
                    "front_camera_intrinsics": np.stack([camera_of(e, t) for t in range(length)]),
                    "front_camera_extrinsics": np.stack([pose_of(e, t) for t in range(length)]),
                    "clock": CLOCK + np.arange(length),
                },
                tasks=[TASKS[(t + e) % 2] for t in range(length)],
                images={},
                videos={
                    KEY: (numbered(picture_number(0, e, t)) for t in range(length)),
                    "depth.front": (depth_of(e, t) for t in range(length)),
                },
            )
    return folder


def camera_of(episode, step):
    return np.array([50 + step + 1e-9, 60 + step, 40 + episode, 30 + 1 / 3])


def pose_of(episode, step):
    pose = np.eye(4)
    pose[:3, 3] = episode, step, 0.1
    return pose.ravel()


def check(dataset, *, extrinsics):
    """Every sample is what was written."""
    assert len(dataset) == len(FRAMES)
    assert dataset.action_space.names == ("shoulder_pan", "shoulder_lift", "elbow_flex", "gripper")
    for frame, (e, t) in enumerate(FRAMES):
        sample = dataset[frame]
        assert (sample.episode, sample.step) == (e, t)
        assert number_of(sample.images["primary"]) == picture_number(0, e, t)
        metres = depth_of(e, t).astype(np.float32) * np.float32(1e-4)
        np.testing.assert_array_equal(sample.depth["primary"], metres)
        assert sample.instruction == TASKS[(t + e) % 2]
        np.testing.assert_array_equal(sample.actions[0][:3], action_of(e, t)[:3])
        np.testing.assert_allclose(sample.actions[0][3], action_of(e, t)[3] / 100, rtol=1e-6)
        np.testing.assert_array_equal(sample.proprio, action_of(e, t) - 1)
        if extrinsics:
            fx, fy, cx, cy = camera_of(e, t)
            np.testing.assert_array_equal(
                sample.intrinsics["primary"], [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
            )
            pose = pose_of(e, t).reshape(4, 4)
            np.testing.assert_array_equal(sample.extrinsics["primary"], pose)
        else:
            K = [[50 + t, 0, 40 + e], [0, 60 + t, 30], [0, 0, 1]]
            np.testing.assert_array_equal(sample.intrinsics["primary"], K)


def test_version_2_1_goes_to_rlds(tmp_path):
    """Bookkeeping columns become the order of steps; names of joints go to the card."""
    old = write(tmp_path / "arm", "v2.1")
    report = convert(old, tmp_path / "a", "--to", "rlds")
    assert report["inexact"] == {KEY: "the frames as the video decodes, stored as PNG"}
    rlds = tmp_path / "a/arm/1.0.0"
    check(open_dataset(old, card=None), extrinsics=False)
    check(open_dataset(rlds, card=None), extrinsics=False)
    leaves = set(build_index(rlds).leaves)
    assert not any("index" in path for path in leaves)
    assert "timestamp" in leaves


def test_our_folder_goes_to_rlds_and_round(tmp_path):
    """LeRobot -> RLDS -> LeRobot -> RLDS: joints, words, depth and calibration exactly."""
    first = write_ours(tmp_path / "arm")
    report = convert(first, tmp_path / "a", "--to", "rlds")
    assert (report["episodes"], report["steps"]) == (len(LENGTHS), len(FRAMES))
    assert report["inexact"] == {KEY: "the frames as the video decodes, stored as PNG"}
    rlds = tmp_path / "a/arm/1.0.0"
    check(open_dataset(first, card=None), extrinsics=True)
    check(open_dataset(rlds, card=None), extrinsics=True)
    np.testing.assert_array_equal(build_index(rlds).column("clock", 1), CLOCK + np.arange(12))
    # PNG keeps the decoded frames as they are: from here on nothing is lost.
    one, two = open_dataset(first, card=None), open_dataset(rlds, card=None)
    for frame in range(0, len(FRAMES), 5):
        np.testing.assert_array_equal(one[frame].images["primary"], two[frame].images["primary"])
    report = convert(rlds, tmp_path / "b", "--to", "lerobot")
    assert report["exact"], report
    check(open_dataset(tmp_path / "b", card=None), extrinsics=True)
    report = convert(tmp_path / "b", tmp_path / "c", "--to", "rlds")
    assert report["exact"], report
    a, b = build_index(rlds), build_index(tmp_path / "c/arm/1.0.0")
    assert set(a.leaves) == set(b.leaves)
    for path, leaf in a.leaves.items():
        for episode in range(a.num_episodes):
            if leaf.kind != "image":
                np.testing.assert_array_equal(a.column(path, episode), b.column(path, episode))
            elif leaf.dtype == np.uint8:
                pictures = [x.image_bytes(episode, 0, path) for x in (a, b)]
                assert pictures[0] == pictures[1]
