"""What a dataset says of itself: `features.json` as a flat list of leaves.

A leaf knows under which keys its values lie in a `tf.train.Example`. Inside `steps` the values of
all steps are joined; every further sequence adds one `ragged_row_lengths_<i>`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spatialvla_ft.data.errors import DatasetError

Kind = Literal["image", "tensor", "bytes"]
STEPS = "steps"


@dataclass(frozen=True)
class Leaf:
    """One feature of every step, or of every episode.

    Attributes:
        path: dotted name below `steps` (below the root for an episode's); a `/` belongs to a key.
        wire: name in the `tf.train.Example`.
        level: whether there is one value per step or one per episode.
        kind: an encoded image, a numeric tensor, or bytes (text and strings).
        dtype: of the decoded values; `object` for bytes.
        shape: of one value; -1 where it varies.
        encoding: `none`, `bytes` or `zlib` for tensors; `jpeg`, `png` or `` for images.
        ragged: number of variable-length sequences around the value, `steps` not counted.
    """

    path: str
    wire: str
    level: Literal["step", "episode"]
    kind: Kind
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    encoding: str
    ragged: int

    @property
    def width(self) -> int:
        """Numbers per value; -1 if that varies."""
        return -1 if -1 in self.shape else int(np.prod(self.shape, dtype=np.int64))

    @property
    def encoded(self) -> bool:
        """Whether a tensor is stored as one byte string."""
        return self.kind == "tensor" and self.encoding != "none"

    @property
    def joined(self) -> int:
        """Sequences around the value on the wire, `steps` counted."""
        return self.ragged + (self.level == "step")

    def wire_keys(self) -> dict[str, str]:
        """Part of the value -> key in the record: `value`, `shape` and `rows<i>`."""
        keys = {"value": self.wire}
        if self.encoded and self.shape.count(-1) > 1:
            keys = {"value": f"{self.wire}/value", "shape": f"{self.wire}/shape"}
        if self.joined < 2:
            return keys
        rows = {f"rows{i}": f"{self.wire}/ragged_row_lengths_{i}" for i in range(self.joined - 1)}
        return {part: f"{key}/ragged_flat_values" for part, key in keys.items()} | rows


def _dtype(name: str, where: str) -> np.dtype[Any]:
    if name in ("string", "object"):
        return np.dtype(object)
    try:
        return np.dtype(name)
    except TypeError:
        raise DatasetError(
            f"{where}: dtype {name!r} is not supported; write the feature as float32"
        ) from None


def _shape(node: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in node.get("shape", {}).get("dimensions", []))


def _value(node: dict[str, Any], where: str) -> tuple[Kind, np.dtype[Any], tuple[int, ...], str]:
    """Kind, dtype, shape and encoding of a feature that holds no further features."""
    if "image" in node:
        image = node["image"]
        dtype = _dtype(image.get("dtype") or "uint8", where)
        return "image", dtype, _shape(image), image.get("encodingFormat", "")
    if "text" in node:
        return "bytes", np.dtype(object), (), "none"
    if "tensor" in node:
        tensor = node["tensor"]
        dtype = _dtype(tensor["dtype"], where)
        kind: Kind = "bytes" if dtype.kind == "O" else "tensor"
        return kind, dtype, _shape(tensor), tensor.get("encoding") or "none"
    if "classLabel" in node:
        return "tensor", np.dtype(np.int64), (), "none"
    if "boundingBox" in node:
        box = node["boundingBox"]
        return "tensor", _dtype(box.get("dtype") or "float32", where), (4,), "none"
    name = node.get("pythonClassName", "?").rsplit(".", 1)[-1]
    raise DatasetError(
        f"{where}: features of class {name} are not indexed; remove the feature or store it as "
        "Tensor, Text or Image"
    )


def parse_features(root: dict[str, Any], source: str = "features.json") -> tuple[Leaf, ...]:
    """The leaves of a parsed `features.json`, steps first.

    Raises:
        DatasetError: a feature class or dtype is not supported, or there is no `steps` sequence.
    """
    leaves: list[Leaf] = []

    def walk(node: dict[str, Any], keys: tuple[str, ...], ragged: int) -> None:
        where = f"{source}: {'/'.join(keys) or 'root'}"
        if "featuresDict" in node:
            for key, child in node["featuresDict"].get("features", {}).items():
                walk(child, (*keys, key), ragged)
            return
        if "sequence" in node:
            walk(node["sequence"]["feature"], keys, ragged + (keys != (STEPS,)))
            return
        kind, dtype, shape, encoding = _value(node, where)
        in_steps = keys[0] == STEPS
        leaf = Leaf(
            path=".".join(keys[1:] if in_steps else keys),
            wire="/".join(keys),
            level="step" if in_steps else "episode",
            kind=kind,
            dtype=dtype,
            shape=shape,
            encoding=encoding,
            ragged=ragged,
        )
        if leaf.kind != "image" and leaf.width == 0:
            raise DatasetError(f"{where}: shape {shape} holds nothing; remove the feature")
        if leaf.kind != "image" and leaf.width < 0 and not leaf.encoded and ragged:
            raise DatasetError(
                f"{where}: a shape {shape} that varies inside a sequence cannot be indexed; store "
                "it with encoding='zlib'"
            )
        leaves.append(leaf)

    walk(root, (), 0)
    steps = root.get("featuresDict", {}).get("features", {}).get(STEPS, {})
    if "sequence" not in steps:
        raise DatasetError(f"{source}: no 'steps' sequence, so this is not an RLDS dataset")
    return tuple(sorted(leaves, key=lambda leaf: leaf.level != "step"))


@dataclass(frozen=True)
class Split:
    """A split and its shards: file names and the number of episodes in each."""

    name: str
    shards: tuple[str, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset_info.json` says: name, version and splits (train first)."""

    name: str
    version: str
    splits: tuple[Split, ...]


def read_features(dataset_dir: Path) -> tuple[Leaf, ...]:
    """Leaves of the dataset in `dataset_dir`; DatasetError if it is not an RLDS dataset."""
    path = dataset_dir / "features.json"
    return parse_features(_read_json(path), str(path))


def read_dataset_info(dataset_dir: Path) -> DatasetInfo:
    """Splits and shard names; DatasetError on formats other than TFRecord, by name."""
    path = dataset_dir / "dataset_info.json"
    info = _read_json(path)
    file_format = (info.get("fileFormat") or "tfrecord").lower()
    if file_format != "tfrecord":
        raise DatasetError(
            f"{path}: the file format is {file_format!r}; only tfrecord is indexed. Convert "
            "it with tfds convert_format --out_file_format=tfrecord"
        )
    name, version = info["name"], info["version"]
    splits = []
    for split in info.get("splits", []):
        lengths = tuple(int(n) for n in split.get("shardLengths", []))
        template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        shards = []
        for i in range(len(lengths)):
            fields = {
                "DATASET": name,
                "SPLIT": split["name"],
                "FILEFORMAT": file_format,
                "SHARD_X_OF_Y": f"{i:05d}-of-{len(lengths):05d}",
                "SHARD_INDEX": f"{i:05d}",
                "NUM_SHARDS": f"{len(lengths):05d}",
            }
            shard = template
            for field, value in fields.items():
                shard = shard.replace("{" + field + "}", value)
            shards.append(shard)
        splits.append(Split(split["name"], tuple(shards), lengths))
    if not splits:
        raise DatasetError(f"{path}: no splits; the dataset was not prepared to its end")
    splits.sort(key=lambda split: split.name != "train")
    return DatasetInfo(name, version, tuple(splits))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DatasetError(
            f"{path} is missing; give the version directory of an RLDS dataset, the one with "
            "features.json and dataset_info.json, e.g. bridge_orig/1.0.0"
        ) from None
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: an object was expected, got {type(content).__name__}")
    return content
