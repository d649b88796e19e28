"""Random frames of LeRobot videos through the data loader, beside what a training step needs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from jaxtyping import UInt8

from ..converters.lerobot_writer import LeRobotWriter
from ..converters.video_writer import CODECS
from ..data.lerobot.info import Feature
from ..processes import Child
from .data_frames import BATCH
from .figures import Figure, Report
from .video_frames import COPIES

SIZES = ((480, 640), (224, 224))
GOPS = (2, 250)
WORKERS = (0, 1, 2)
EPISODES, STEPS, FPS = 4, 250, 30
BATCHES = {2: 8, 250: 8}
"""Per round: more than two workers fetch ahead, so that these do not hide the wait."""
NEEDED = 60
"""Samples per second that a step is assumed to take: LoRA of 4 B parameters on one large GPU is
expected to take 20 to 60."""
JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")
CAMERA = "observation.images.front"
PROGRAM = "spatialvla_ft.bench.video_frames"


def bench_video(*, rounds: int) -> Report:
    """Samples per second and the share of time that training waits, by codec, size and key frames.

    Args:
        rounds: timed ones, in which all datasets take turns.

    Raises:
        ValueError: not on Linux, whose /proc is read.
    """
    if sys.platform != "linux":
        raise ValueError(f"bench video reads /proc, which {sys.platform} lacks; run it on Linux")
    report = Report(
        "video",
        {
            "frames": f"{COPIES} times {EPISODES * STEPS}",
            "batch": BATCH,
            "cores": os.cpu_count(),
            "assumed need": f"{NEEDED} samples/s",
        },
    )
    with tempfile.TemporaryDirectory() as root:
        folders = {}
        for height, width in SIZES:
            frames = list(_scene(height, width, EPISODES * STEPS))
            for codec in CODECS:
                for gop in GOPS:
                    name = f"{codec} {width} x {height}, key every {gop}"
                    folders[name] = (_write(Path(root), frames, codec, gop), gop)
        for name, (folder, _) in folders.items():
            size = sum(path.stat().st_size for path in folder.rglob("*.mp4")) / 1024
            each = size / (EPISODES * STEPS)
            report.add(f"{name}, size", each, "KiB", "of the file, per frame")
        _side_by_side(report, folders, rounds)
    report.notes += [
        "one camera, decoded, squashed to 224; the order is random over the dataset, a batch is "
        "read in the order of the file",
        f"wait: beside a step of {BATCH / NEEDED:.2f} s for {BATCH} samples, off the processor",
        "generated pictures: smooth texture, moving blocks, little noise",
    ]
    return report


def _scene(height: int, width: int, count: int) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Texture at two scales, moving blocks and a camera's noise."""
    rng = np.random.default_rng(0)
    still = np.full((height, width, 3), 120.0)
    for cell, strength in ((4, 20), (40, 35)):
        coarse = rng.normal(0, strength, (height // cell + 1, width // cell + 1, 3))
        still += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
    for t in range(count):
        picture = still + rng.normal(0, 2.5, (height, width, 1))
        for block in range(3):
            y = int(height * (0.45 + 0.35 * np.sin(t / 25 + 2 * block)))
            x = int(width * (0.45 + 0.35 * np.cos(t / 31 + block)))
            picture[y : y + height // 6, x : x + width // 7] = (
                200 - 60 * block,
                40 + 70 * block,
                60,
            )
        yield picture.clip(0, 255).astype(np.uint8)


def _write(root: Path, frames: Sequence[UInt8[np.ndarray, "H W 3"]], codec: str, gop: int) -> Path:
    """A dataset of joints and one camera."""
    height, width = frames[0].shape[:2]
    folder = root / f"{codec}_{width}_{gop}"
    info = {"video.codec": codec}
    features = {
        "action": Feature("action", "float32", (len(JOINTS),), JOINTS, {}),
        CAMERA: Feature(CAMERA, "video", (height, width, 3), ("height", "width", "channels"), info),
    }
    codecs = {CAMERA: CODECS[codec].with_gop(gop)}
    actions = np.tile(np.array([0, 1, 50], np.float32), (STEPS, 1))
    with LeRobotWriter(folder, fps=FPS, features=features, codecs=codecs) as writer:
        for episode in range(EPISODES):
            shown = frames[episode * STEPS : (episode + 1) * STEPS]
            writer.add_episode(
                {"action": actions}, tasks=["go"] * STEPS, images={}, videos={CAMERA: shown}
            )
    return folder


def _side_by_side(report: Report, folders: dict[str, tuple[Path, int]], rounds: int) -> None:
    """Every dataset and number of workers once per round."""
    free: dict[str, list[dict[str, float]]] = {}
    fed: dict[str, list[dict[str, float]]] = {}
    with Child(PROGRAM) as child:
        for _ in range(rounds):
            for name, (folder, gop) in folders.items():
                for workers in WORKERS:
                    request = {"folder": str(folder), "workers": workers, "batches": BATCHES[gop]}
                    what = f"{name}, {workers} workers"
                    for found, rate in ((free, None), (fed, NEEDED)):
                        found.setdefault(what, []).append(child.ask({**request, "rate": rate}))
    for what, found in free.items():
        rates = [one["samples"] / one["wall"] for one in found]
        cpu = [1000 * one["cpu"] / one["samples"] for one in found]
        waits = [100 * one["waited"] for one in fed[what]]
        report.figures += [
            _figure(f"{what}, rate", rates, "/s", "samples per second"),
            _figure(f"{what}, cpu", cpu, "ms", "processor time per sample, all processes"),
            _figure(
                f"{what}, wait", waits, "%", f"of its time, training at {NEEDED} samples/s waits"
            ),
        ]


def _figure(name: str, values: Sequence[float], unit: str, counts: str) -> Figure:
    return Figure(name, median(values), unit, counts, min(values), max(values))
