"""LeRobot's own class reads what we write. Needs its Python: SPATIALVLA_FT_LEROBOT_PYTHON."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from lerobot_write import (
    HEIGHT,
    LENGTHS,
    TASKS,
    WIDTH,
    action_of,
    depth_of,
    numbered,
    picture_number,
    write,
)

from spatialvla_ft.converters.lerobot_writer import LeRobotWriter
from spatialvla_ft.converters.rlds_to_lerobot import to_lerobot
from spatialvla_ft.converters.video_writer import CODECS, DEPTH_CODEC
from spatialvla_ft.data import build_index
from spatialvla_ft.data.decode import decode_rgb
from spatialvla_ft.data.lerobot.info import Feature
from spatialvla_ft.data.opening import read_card

LEROBOT = os.environ.get("SPATIALVLA_FT_LEROBOT_PYTHON")
TOOL = Path(__file__).parents[3] / "tools/check_with_lerobot.py"
FRAMES = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LEROBOT, reason="SPATIALVLA_FT_LEROBOT_PYTHON is not set"),
]


def check(folder, expected, tmp_path):
    np.savez(tmp_path / "expected.npz", **expected)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [LEROBOT, str(TOOL), str(folder), str(tmp_path / "expected.npz")],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def expected(tolerance):
    pictures = np.stack([numbered(picture_number(0, e, t)) for e, t in FRAMES])
    return {
        "task": np.array([TASKS[(t + e) % 2] for e, t in FRAMES]),
        "action": np.stack([action_of(e, t) for e, t in FRAMES]),
        "observation.images.front": pictures,
        "observation.images.front:tolerance": np.float64(tolerance),
    }


def test_the_folder_of_the_reader_tests_is_a_lerobot_dataset(tmp_path):
    report = check(write(tmp_path / "d", "v3.0", depth=True), expected(4.0), tmp_path)
    assert report["frames"] == len(FRAMES)


def test_what_the_conversion_writes(written, tmp_path):
    source = tmp_path / "demo" / "1.0.0"
    shutil.copytree(written / "demo" / "1.0.0", source)
    index = build_index(source)
    card = read_card(source / "card.yaml", index)
    to_lerobot(index, card, source / "card.yaml", tmp_path / "d")
    steps = [(e, t) for e, n in enumerate(index.episode_lengths.tolist()) for t in range(n)]
    wanted = {
        key: np.stack([index.column(key, e)[t] for e, t in steps])
        for key in ("action", "observation.state", "reward", "is_last")
    }
    wanted["task"] = np.array(
        [index.column("language_instruction", e)[t].decode() for e, t in steps]
    )
    K = np.stack([index.column("observation.intrinsics_front", e)[t] for e, t in steps])
    wanted["front_camera_intrinsics"] = K[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    for camera in ("wrist", "front"):
        key = f"observation.images.{camera}"
        pictures = [index.image_bytes(e, t, f"observation.image_{camera}") for e, t in steps]
        wanted[key] = np.stack([decode_rgb(data, fast_dct=False) for data in pictures])
        wanted[f"{key}:tolerance"] = np.float64(0)
    report = check(tmp_path / "d", wanted, tmp_path)
    assert report["frames"] == len(steps)


@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_what_the_writer_writes(tmp_path, codec):
    names = ("height", "width", "channels")
    features = {
        "action": Feature("action", "float32", (4,), None, {}),
        "matrix": Feature("matrix", "float64", (2, 3), None, {}),
        "note": Feature("note", "string", (1,), None, {}),
        "done": Feature("done", "bool", (1,), None, {}),
        "observation.images.front": Feature(
            "observation.images.front", "video", (HEIGHT, WIDTH, 3), names, {}
        ),
        "depth.front": Feature("depth.front", "video", (HEIGHT, WIDTH, 1), names, {}),
    }
    codecs = {"observation.images.front": CODECS[codec], "depth.front": DEPTH_CODEC}
    with LeRobotWriter(tmp_path / "d", fps=10, features=features, codecs=codecs) as writer:
        for e, length in enumerate(LENGTHS):
            writer.add_episode(
                {
                    "action": np.stack([action_of(e, t) for t in range(length)]),
                    "matrix": np.arange(length * 6, dtype=np.float64).reshape(length, 2, 3) + e,
                    "note": np.array([f"note {e} {t}" for t in range(length)], object),
                    "done": np.arange(length) == length - 1,
                },
                tasks=[TASKS[(t + e) % 2] for t in range(length)],
                images={},
                videos={
                    "observation.images.front": (
                        numbered(picture_number(0, e, t)) for t in range(length)
                    ),
                    "depth.front": (depth_of(e, t) for t in range(length)),
                },
            )
    wanted = expected(4.0)
    wanted["matrix"] = np.concatenate(
        [np.arange(n * 6, dtype=np.float64).reshape(n, 2, 3) + e for e, n in enumerate(LENGTHS)]
    )
    wanted["note"] = np.array([f"note {e} {t}" for e, t in FRAMES])
    wanted["done"] = np.array([t == LENGTHS[e] - 1 for e, t in FRAMES])
    report = check(tmp_path / "d", wanted, tmp_path)
    assert report["episodes"] == len(LENGTHS)
    assert "depth.front" in report["cameras"]
