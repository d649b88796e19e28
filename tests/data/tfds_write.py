"""Run as a program: write two small datasets with tfds, and dump what tfds reads from them.

    python tfds_write.py ROOT

makes ROOT/demo/1.0.0 (a robot with depth, a card, two splits, several shards), ROOT/zoo/1.0.0
(every kind of feature that tfds writes inside steps and reads again) and
ROOT/dump/<name>/<split>.pickle.
TensorFlow must not share a process with torch, hence the program; the pickles are our own.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tfds_wild import UNREAD, WILD, wild_episode

CARD = """\
schema_version: 1
cards:
  demo:
    version: 1.0.0
    robot: WidowX (simulated)
    control_hz: 5
    cameras: {primary: observation.image_front, wrist: observation.image_wrist}
    depth: {primary: observation.depth_front}
    depth_scale: 1.0e-4
    intrinsics:
      primary: observation.intrinsics_front
      wrist: {fx: 100.0, fy: 90.0, cx: 32.0, cy: 24.0, width: 64, height: 48}
    extrinsics: {primary: observation.extrinsics_front}
    action:
      encoding: EEF_POS
      translation: ["action[0:3]"]
      rotation: {raw: labelled_euler, terms: ["action[3:6]"]}
      gripper: ["action[-1:]"]
    proprio:
      encoding: POS_EULER
      terms: ["observation.state[0:6]", zeros(1), "observation.state[-1:]"]
"""

F = tfds.features


def _tensor(shape, dtype=np.float32, **kwargs):
    return F.Tensor(shape=shape, dtype=dtype, **kwargs)


def _smooth(rng, height, width):
    y, x = np.mgrid[0:height, 0:width]
    a = rng.uniform(0, 0.3, (3, 2))
    waves = np.stack([np.sin(x * a[c, 0] + y * a[c, 1]) for c in range(3)], axis=-1)
    return (waves * 100 + 128).astype(np.uint8)


DEMO = F.FeaturesDict(
    {
        "steps": F.Dataset(
            {
                "observation": F.FeaturesDict(
                    {
                        "image_front": F.Image(shape=(36, 64, 3), encoding_format="jpeg"),
                        "image_wrist": F.Image(shape=(24, 32, 3), encoding_format="png"),
                        "depth_front": F.Image(
                            shape=(36, 64, 1), dtype=np.uint16, encoding_format="png"
                        ),
                        "intrinsics_front": _tensor((3, 3)),
                        "extrinsics_front": _tensor((4, 4)),
                        "state": _tensor((7,)),
                    }
                ),
                "action": _tensor((7,)),
                "language_instruction": F.Text(),
                "is_first": F.Scalar(np.bool_),
                "is_last": F.Scalar(np.bool_),
                "is_terminal": F.Scalar(np.bool_),
                "reward": F.Scalar(np.float32),
                "discount": F.Scalar(np.float32),
            }
        ),
        "episode_metadata": F.FeaturesDict(
            {
                "episode_id": F.Scalar(np.int64),
                "seed": F.Scalar(np.int64),
                "task": F.Text(),
                "success": F.Scalar(np.bool_),
            }
        ),
    }
)


def demo_episode(number, length):
    rng = np.random.default_rng(number)
    K = np.array([[70 + number, 0, 31.5], [0, 71, 18.5], [0, 0, 1]], np.float32)
    steps = []
    for t in range(length):
        depth = rng.integers(1, 30000, (36, 64, 1), dtype=np.uint16)
        depth[0, :5] = 0
        observation = {
            "image_front": _smooth(rng, 36, 64),
            "image_wrist": _smooth(rng, 24, 32),
            "depth_front": depth,
            "intrinsics_front": K,
            "extrinsics_front": np.eye(4, k=3, dtype=np.float32) * t + np.eye(4, dtype=np.float32),
            "state": rng.normal(size=7).astype(np.float32),
        }
        step = {
            "observation": observation,
            "action": rng.normal(size=7).astype(np.float32),
            "language_instruction": f"püt the block {number} down",
            "is_first": t == 0,
            "is_last": t == length - 1,
            "is_terminal": t == length - 1,
            "reward": float(t == length - 1),
            "discount": 1.0,
        }
        steps.append(step)
    meta = {
        "episode_id": number,
        "seed": -(2**40) - number,
        "task": "stack",
        "success": bool(number % 2),
    }
    return {"steps": steps, "episode_metadata": meta}


ZOO = F.FeaturesDict(
    {
        "steps": F.Dataset(
            {
                "observation": F.FeaturesDict(
                    {
                        "jpeg": F.Image(shape=(24, 32, 3), encoding_format="jpeg"),
                        "png": F.Image(shape=(None, None, 3), encoding_format="png"),
                        "grey": F.Image(shape=(24, 32, 1), encoding_format="png"),
                        "rgba": F.Image(shape=(24, 32, 4), encoding_format="png"),
                        "depth16": F.Image(
                            shape=(24, 32, 1), dtype=np.uint16, encoding_format="png"
                        ),
                        "depth32": F.Image(
                            shape=(24, 32, 1), dtype=np.float32, encoding_format="png"
                        ),
                        "some_images": F.Sequence(F.Image(shape=(8, 8, 3), encoding_format="png")),
                        "zlib": _tensor((3, 2), encoding="zlib"),
                        "zlib_any": _tensor((None, None), encoding="zlib"),
                        "raw_bytes": _tensor((4,), np.int16, encoding="bytes"),
                        "nested": F.FeaturesDict(
                            {
                                "a/b": F.Scalar(np.int32),
                                "c": F.FeaturesDict({"d": F.Scalar(np.float32)}),
                            }
                        ),
                        "numbers": F.Sequence(F.Scalar(np.int32)),
                        "points": F.Sequence(_tensor((3,))),
                        "words": F.Sequence(F.Text()),
                        "things": F.Sequence({"p": F.Scalar(np.float32), "q": F.Text()}),
                        "tree": F.Sequence(F.Sequence(F.Scalar(np.int32))),
                        "i8": F.Scalar(np.int8),
                        "i16": F.Scalar(np.int16),
                        "i32": F.Scalar(np.int32),
                        "i64": F.Scalar(np.int64),
                        "u8": F.Scalar(np.uint8),
                        "u16": F.Scalar(np.uint16),
                        "u32": F.Scalar(np.uint32),
                        "u64": F.Scalar(np.uint64),
                        "f64": F.Scalar(np.float64),
                        "flags": _tensor((3,), np.bool_),
                        "label": F.ClassLabel(num_classes=3),
                        "box": F.BBoxFeature(),
                        "strings": _tensor((2,), np.str_),
                        "embedding": _tensor((512,)),
                        "pixels": _tensor((4, 5, 3), np.uint8),
                    }
                ),
                "action": _tensor((7,)),
                "text": F.Text(),
            }
        ),
        "episode_metadata": F.FeaturesDict(
            {
                "path": F.Text(),
                "marks": F.Sequence(F.Scalar(np.int64)),
                "photo": F.Image(shape=(8, 8, 3), encoding_format="png"),
            }
        ),
    }
)


def zoo_episode(number, length):
    rng = np.random.default_rng(100 + number)

    def pixels(*shape):
        return rng.integers(0, 256, shape, dtype=np.uint8)

    steps = []
    for t in range(length):
        n = (t * 2 + number) % 4
        observation = {
            "jpeg": _smooth(rng, 24, 32),
            "png": pixels(5 + t, 7, 3),
            "grey": pixels(24, 32, 1),
            "rgba": pixels(24, 32, 4),
            "depth16": rng.integers(0, 2**16, (24, 32, 1), dtype=np.uint16),
            "depth32": rng.normal(size=(24, 32, 1)).astype(np.float32),
            "some_images": [pixels(8, 8, 3) for _ in range(n)],
            "zlib": rng.normal(size=(3, 2)).astype(np.float32),
            "zlib_any": rng.normal(size=(n, t)).astype(np.float32),
            "raw_bytes": rng.integers(-999, 999, 4, dtype=np.int16),
            "nested": {"a/b": -t, "c": {"d": t / 7}},
            "numbers": list(range(-n, 0)),
            "points": [rng.normal(size=3).astype(np.float32) for _ in range(n)],
            "words": [f"wörd{k}" for k in range(n)],
            "things": [{"p": k / 3, "q": "s" * k} for k in range(n)],
            "tree": [list(range(k)) for k in range(n)],
            "i8": -128,
            "i16": -(2**15) + t,
            "i32": -(2**31) + t,
            "i64": -(2**63) + t,
            "u8": 255,
            "u16": 2**16 - 1 - t,
            "u32": 2**32 - 1 - t,
            "u64": 2**62 + t,
            "f64": float(np.float32(1 / (t + 3))),
            "flags": [t % 2 == 0, True, False],
            "label": t % 3,
            "box": F.BBox(0.0, 0.25, 0.5, 1.0),
            "strings": [f"a{t}", ""],
            "embedding": rng.normal(size=512).astype(np.float32),
            "pixels": pixels(4, 5, 3),
        }
        steps.append(
            {
                "observation": observation,
                "action": rng.normal(size=7).astype(np.float32),
                "text": f"step {t}",
            }
        )
    return {
        "steps": steps,
        "episode_metadata": {
            "path": f"p/{number}",
            "marks": list(range(number)),
            "photo": pixels(8, 8, 3),
        },
    }


def builder(name, features, episode, lengths):
    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=features)

    def splits(self, _):
        return {split: self._generate_examples(split) for split in lengths}

    def examples(self, split):
        start = 0 if split == "train" else 50
        for i, length in enumerate(lengths[split]):
            yield i, episode(start + i, length)

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": splits,
        "_generate_examples": examples,
        "name": name,
    }
    return type(name.title(), (tfds.core.GeneratorBasedBuilder,), body)


KINDS = {}
"""Builders by name; tfds allows each name once."""


def write(name, out, file_format="tfrecord"):
    kinds = {
        "demo": (DEMO, demo_episode, {"train": [5, 3, 8, 1, 6, 4], "val": [3, 2, 4]}),
        "zoo": (ZOO, zoo_episode, {"train": [4, 1, 3]}),
        "wild": (WILD, wild_episode, {"train": [4, 1, 3], "val": [2]}),
    }
    if name not in KINDS:
        KINDS[name] = builder(name, *kinds[name])
    made = KINDS[name](data_dir=str(out), file_format=file_format)
    config = tfds.download.DownloadConfig(num_shards=3 if name == "demo" else 1)
    made.download_and_prepare(download_config=config)
    if name == "demo":
        (Path(made.data_dir) / "card.yaml").write_text(CARD)


def plain(value):
    """NumPy and lists only, so that it is read without TensorFlow."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if type(value).__name__ == "RaggedTensorValue" or hasattr(value, "to_list"):
        return value.to_list()
    return np.asarray(value) if not isinstance(value, bytes) else value


def dump(source, out):
    made = tfds.builder_from_directory(source)
    config = tfds.ReadConfig(interleave_cycle_length=1)
    for split in made.info.splits:
        content = []
        skip = skip_images(made.info.features)
        raw = made.as_dataset(split=split, read_config=config, decoders=skip)
        unread = skip_unread(made.info.features)
        decoded = made.as_dataset(split=split, read_config=config, decoders=unread)
        for a, b in zip(raw, decoded, strict=True):
            pair = []
            for episode in (a, b):
                steps = [plain(step) for step in tfds.as_numpy(episode["steps"])]
                rest = {k: plain(tfds.as_numpy(v)) for k, v in episode.items() if k != "steps"}
                pair.append({"steps": steps, **rest})
            content.append(pair)
        with (Path(out) / f"{split}.pickle").open("wb") as file:
            pickle.dump(content, file)


def skip_images(features, name=""):
    """Decoders that leave single images, and what tfds cannot read, encoded."""
    if isinstance(features, F.Image) or name in UNREAD:
        return tfds.decode.SkipDecoding()
    if isinstance(features, F.FeaturesDict):
        found = {k: skip_images(v, k) for k, v in features.items()}
        return {k: v for k, v in found.items() if v is not None}
    if isinstance(features, F.Dataset):
        return skip_images(features.feature)
    return None


def skip_unread(features):
    """Decoders for what tfds cannot read itself; None if there is nothing of the kind."""
    observation = features["steps"].feature["observation"]
    names = [name for name in UNREAD if name in observation]
    skip = dict.fromkeys(names, tfds.decode.SkipDecoding())
    return {"steps": {"observation": skip}} if names else None


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for kind in sys.argv[2:]:
        if kind == "wild":
            for other in ("wild", "demo"):
                write(other, root / "array_record", "array_record")
        write(kind, root)
        (root / "dump" / kind).mkdir(parents=True)
        dump(root / kind / "1.0.0", root / "dump" / kind)
