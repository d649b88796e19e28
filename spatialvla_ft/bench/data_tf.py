"""A program of its own, as TensorFlow shares no process with torch: write a dataset, or read it.

    python -m spatialvla_ft.bench.data_tf write FOLDER FRAMES HEIGHT WIDTH
    python -m spatialvla_ft.bench.data_tf read FOLDER BUFFER

`read` is the tf.data graph of today's toolkits: episodes from TFRecord, chunks of actions, their
frames, a shuffle buffer of encoded frames, then JPEG decoding and Lanczos to 224. Each line on
standard input is a number of frames; the answer is a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

NAME = "frames"
STEPS = 40
SIZE, BATCH, HORIZON = 224, 32, 4

CARD = f"""\
schema_version: 1
cards:
  {NAME}:
    version: 1.0.0
    robot: generated
    control_hz: 5
    cameras: {{primary: observation.image}}
    intrinsics: {{primary: {{fx: 300.0, fy: 300.0, cx: 160.0, cy: 120.0, width: 320, height: 240}}}}
    action:
      encoding: EEF_POS
      translation: ["action[0:3]"]
      rotation: {{raw: labelled_euler, terms: ["action[3:6]"]}}
      gripper: ["action[-1:]"]
"""


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with the falling spectrum of photographs, about as large as one in JPEG."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    frequency[0, 0] = np.inf
    noise = rng.normal(size=(2, 3, *frequency.shape))
    planes = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency**1.5, s=(height, width))
    planes = planes / planes.std() * 45 + 120
    return np.clip(np.moveaxis(planes, 0, -1), 0, 255).astype(np.uint8)


def write(folder: Path, frames: int, height: int, width: int) -> None:
    """Write `folder/frames/1.0.0`: episodes of 40 steps, one camera that pans, four shards."""
    rng = np.random.default_rng(0)
    scenes = [picture(rng, height, width) for _ in range(8)]
    features = tfds.features
    step = {
        "observation": features.FeaturesDict(
            {
                "image": features.Image(shape=(height, width, 3), encoding_format="jpeg"),
                "state": features.Tensor(shape=(7,), dtype=np.float32),
            }
        ),
        "action": features.Tensor(shape=(7,), dtype=np.float32),
        "language_instruction": features.Text(),
    }

    def info(self: Any) -> Any:
        described = features.FeaturesDict({"steps": features.Dataset(step)})
        return tfds.core.DatasetInfo(builder=self, features=described)

    def splits(self: Any, _: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def examples(_: Any) -> Any:
        for i in range(max(1, frames // STEPS)):
            scene = scenes[i % len(scenes)]
            yield i, {"steps": [_step(rng, np.roll(scene, 5 * t, axis=1)) for t in range(STEPS)]}

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "name": NAME,
        "_info": info,
        "_split_generators": splits,
        "_generate_examples": examples,
    }
    made = type("Frames", (tfds.core.GeneratorBasedBuilder,), body)(data_dir=str(folder))
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    (Path(made.data_dir) / "card.yaml").write_text(CARD)


def _step(rng: np.random.Generator, image: np.ndarray) -> dict[str, Any]:
    state = rng.normal(size=7).astype(np.float32)
    return {
        "observation": {"image": image, "state": state},
        "action": rng.normal(size=7).astype(np.float32),
        "language_instruction": "put the green block on the yellow plate",
    }


def graph(folder: Path, buffer: int) -> tf.data.Dataset:
    """Batches of 224 x 224 pictures with chunks of actions, in random order, for ever."""
    builder = tfds.builder_from_directory(folder)
    episodes = builder.as_dataset(
        split="train",
        shuffle_files=True,
        decoders={"steps": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(skip_prefetch=True),
    )

    def chunks(episode: Any) -> Any:
        steps = episode["steps"]
        count = tf.shape(steps["action"])[0]
        ahead = tf.range(count)[:, None] + tf.range(HORIZON)[None]
        actions = tf.gather(steps["action"], tf.minimum(ahead, count - 1))
        return {
            "image": steps["observation"]["image"],
            "state": steps["observation"]["state"],
            "action": actions,
            "text": steps["language_instruction"],
        }

    def squash(frame: Any) -> Any:
        image = tf.io.decode_image(frame["image"], expand_animations=False, dtype=tf.uint8)
        image = tf.image.resize(image, (SIZE, SIZE), method="lanczos3", antialias=True)
        image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return {**frame, "image": image}

    parallel = tf.data.AUTOTUNE
    frames = episodes.repeat().map(chunks, num_parallel_calls=parallel)
    frames = frames.flat_map(tf.data.Dataset.from_tensor_slices).shuffle(buffer)
    return frames.map(squash, num_parallel_calls=parallel).batch(BATCH).prefetch(2)


def read(folder: Path, buffer: int) -> None:
    """Answer requests for frames until standard input ends."""
    bare = memory_mib()
    batches = iter(graph(folder, buffer).as_numpy_iterator())
    for line in sys.stdin:
        wanted = int(line)
        begin, cpu = time.perf_counter(), _cpu()
        count, total = 0, 0
        while count < wanted:
            batch = next(batches)
            count += len(batch["image"])
            total += int(batch["image"][:, 0, 0, 0].sum())
        wall = time.perf_counter() - begin
        time.sleep(0.5)  # what is fetched ahead belongs to this round: the next one begins with it
        answer = {
            "frames": count,
            "cpu": _cpu() - cpu,
            "wall": wall,
            "memory_mib": memory_mib(),
            "bare_mib": bare,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_mib() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS")


if __name__ == "__main__":
    task, where, *numbers = sys.argv[1:]
    {"write": write, "read": read}[task](Path(where), *map(int, numbers))
