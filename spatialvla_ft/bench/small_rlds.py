"""A generated RLDS dataset on disk, written without TensorFlow: something to time the index on.

Pictures are random bytes of a likely size behind a JPEG's first bytes: the index never decodes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

CAMERAS = ("image_0", "image_1")
INSTRUCTION = b"put the green block on the yellow plate"
_FLOATS = {"observation/state": 7, "action": 7, "reward": 1, "discount": 1}
_FLAGS = ("is_first", "is_last", "is_terminal")


def varint(value: int) -> bytes:
    """Base-128 digits of a number >= 0, the lowest first, as protobuf stores it."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def message(number: int, payload: bytes) -> bytes:
    """Field `number` of a protobuf message that holds bytes."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def example(features: dict[str, Any]) -> bytes:
    """A serialised `tf.train.Example`; values are float32 or int64 arrays, or lists of bytes."""
    entries = []
    for key, values in features.items():
        if isinstance(values, list):
            feature = message(1, b"".join(message(1, value) for value in values))
        elif values.dtype == np.float32:
            feature = message(2, message(1, values.tobytes()))
        else:
            feature = message(3, message(1, b"".join(map(varint, values.tolist()))))
        entries.append(message(1, message(1, key.encode()) + message(2, feature)))
    return message(1, b"".join(entries))


def masked_crc(data: bytes) -> int:
    """The CRC-32C that TFRecord stores: rotated by 15 bits, plus a constant."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_record(file: BinaryIO, data: bytes) -> None:
    """Append one TFRecord."""
    head = struct.pack("<Q", len(data))
    file.write(head + struct.pack("<I", masked_crc(head)))
    file.write(data)
    file.write(struct.pack("<I", masked_crc(data)))


def episode(rng: np.random.Generator, steps: int, picture_bytes: int) -> bytes:
    """One record: two cameras, state, action, text and flags, like most of Open X-Embodiment."""
    features: dict[str, Any] = {}
    for camera in CAMERAS:
        sizes = rng.integers(picture_bytes // 2, picture_bytes * 3 // 2, steps)
        features[f"steps/observation/{camera}"] = [
            b"\xff\xd8\xff\xe0" + rng.bytes(int(size)) for size in sizes
        ]
    for key, width in _FLOATS.items():
        features[f"steps/{key}"] = rng.normal(size=steps * width).astype(np.float32)
    for flag in _FLAGS:
        features[f"steps/{flag}"] = np.zeros(steps, np.int64)
    features["steps/language_instruction"] = [INSTRUCTION] * steps
    features["episode_metadata/file_path"] = [b"raw/episode.npy"]
    return example(features)


def _dict(features: dict[str, Any]) -> dict[str, Any]:
    return {"featuresDict": {"features": features}}


def _tensor(dtype: str, *shape: int) -> dict[str, Any]:
    dimensions = {"dimensions": [str(size) for size in shape]}
    return {"tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"}}


def features_json() -> dict[str, Any]:
    """What tfds would write into features.json for `episode`."""
    image = {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "encodingFormat": "jpeg"}}
    observation = dict.fromkeys(CAMERAS, image) | {"state": _tensor("float32", 7)}
    step = {"observation": _dict(observation), "action": _tensor("float32", 7)}
    step |= {key: _tensor("float32") for key in ("reward", "discount")}
    step |= {flag: _tensor("bool") for flag in _FLAGS}
    step["language_instruction"] = {"text": {}}
    steps = {"sequence": {"feature": _dict(step), "length": "-1"}}
    return _dict({"steps": steps, "episode_metadata": _dict({"file_path": {"text": {}}})})


def write_rlds(
    folder: Path,
    *,
    mebibytes: int,
    shards: int,
    steps: int = 40,
    picture_bytes: int = 16_000,
    seed: int = 0,
    lengths: Iterable[int] | None = None,
) -> Path:
    """Write a dataset of about this size; gives its version directory.

    Args:
        folder: where `generated/1.0.0` is made.
        mebibytes: size of all shards together.
        shards: number of files.
        steps: steps per episode.
        picture_bytes: mean size of a picture, of which a step has two.
        seed: of the contents.
        lengths: episodes per shard, instead of what `mebibytes` asks for.
    """
    directory = folder / "generated" / "1.0.0"
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    per_shard = max(1, round(mebibytes * 2**20 / shards / (2 * steps * picture_bytes)))
    counts = list(lengths) if lengths is not None else [per_shard] * shards
    for i, count in enumerate(counts):
        name = f"generated-train.tfrecord-{i:05d}-of-{len(counts):05d}"
        with (directory / name).open("wb") as file:
            for _ in range(count):
                write_record(file, episode(rng, steps, picture_bytes))
    info = {
        "name": "generated",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "splits": [{"name": "train", "shardLengths": [str(count) for count in counts]}],
    }
    (directory / "features.json").write_text(json.dumps(features_json()))
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory
