"""What a dataset says of itself: `features.json` as a flat list of leaves.

A leaf knows under which keys its values lie in a `tf.train.Example`. Inside `steps` the values of
all steps are joined; every further sequence adds one `ragged_row_lengths_<i>`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from spatialvla_ft.data.errors import DatasetError

Kind = Literal["image", "tensor", "bytes"]
STEPS = "steps"
ENCODINGS = ("none", "bytes", "zlib")


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
        optional: whether an episode may lack the value.
    """

    path: str
    wire: str
    level: Literal["step", "episode"]
    kind: Kind
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    encoding: str
    ragged: int
    optional: bool = False

    @property
    def stored(self) -> np.dtype[Any]:
        """The dtype in the index: integers hold the bits of bfloat16 and the like."""
        return np.dtype(f"u{self.dtype.itemsize}") if self.dtype.kind == "V" else self.dtype

    @property
    def width(self) -> int:
        """Numbers per value; -1 if that varies."""
        return -1 if -1 in self.shape else math.prod(self.shape)

    @property
    def encoded(self) -> bool:
        """Whether a tensor is stored as one byte string."""
        return self.kind == "tensor" and self.encoding != "none"

    @property
    def joined(self) -> int:
        """Sequences around the value on the wire, `steps` counted."""
        return self.ragged + (self.level == "step")

    def wire_keys(self) -> dict[str, str]:
        """Part of the value -> key in the record: `value`, `shape`, `rows<i>`, `shape_rows<i>`."""
        keys = {"value": self.wire}
        if self.encoded and self.shape.count(-1) > 1:
            keys = {"value": f"{self.wire}/value", "shape": f"{self.wire}/shape"}
        if self.joined < 2:
            return keys
        found = {}
        for part, key in keys.items():
            found[part] = f"{key}/ragged_flat_values"
            rows = "rows" if part == "value" else "shape_rows"
            for i in range(self.joined - 1):
                found[f"{rows}{i}"] = f"{key}/ragged_row_lengths_{i}"
        return found


def _dtype(name: str, where: str) -> np.dtype[Any]:
    if name in ("string", "object", "str", "bytes"):
        return np.dtype(object)
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found = getattr(ml_dtypes, name, None)
        if found is None or np.dtype(found).kind != "V":
            raise DatasetError(
                f"{where}: dtype {name!r} is not supported; write the feature as float32"
            ) from None
        special: np.dtype[Any] = np.dtype(found)
        return special


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
    if "tensor" in node or "audio" in node:
        tensor = node.get("tensor") or node["audio"]
        if tensor.get("lazyDecode"):  # the sound file as it came
            return "bytes", np.dtype(object), (), "none"
        dtype = _dtype(tensor.get("dtype", ""), where)
        kind: Kind = "bytes" if dtype.kind == "O" else "tensor"
        encoding = (tensor.get("encoding") or "none").lower()
        if encoding not in ENCODINGS:
            raise DatasetError(
                f"{where}: encoding {encoding!r} is not one of {', '.join(ENCODINGS)}; write the "
                "dataset again with encoding='zlib'"
            )
        return kind, dtype, _shape(tensor), encoding
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


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    """A video and translations as the sequences, dictionaries, images and texts that they are."""
    if "video" in node:
        video = node["video"]
        image = {**video, "shape": {"dimensions": _shape(video)[1:]}}
        return {"sequence": {"feature": {"image": image}}}
    if "translation" in node:
        translation = node["translation"]
        varies = translation.get("variableLanguagesPerExample")
        names = ["language", "translation"] if varies else translation.get("languages", [])
        texts: dict[str, Any] = {
            "featuresDict": {"features": {name: {"text": {}} for name in names}}
        }
        return {"sequence": {"feature": texts}} if varies else texts
    return node


@dataclass(frozen=True)
class Unread:
    """A feature that cannot be indexed.

    Attributes:
        path, wire, level: as those of a `Leaf`.
        reason: why, with the cure.
    """

    path: str
    wire: str
    level: Literal["step", "episode"]
    reason: str


def parse_features(
    root: dict[str, Any],
    source: str = "features.json",
    *,
    unread: list[Unread] | None = None,
) -> tuple[Leaf, ...]:
    """The leaves of a parsed `features.json`, steps first.

    Args:
        root: the parsed file.
        source: its name, for messages.
        unread: takes the features that are not supported; without it they are an error.

    Raises:
        DatasetError: a feature class or dtype is not supported, or there is no `steps` sequence.
    """
    leaves: list[Leaf] = []

    def walk(node: dict[str, Any], keys: tuple[str, ...], ragged: int) -> None:
        where = f"{source}: {'/'.join(keys) or 'root'}"
        node = _plain(node)
        if "featuresDict" in node:
            for key, child in node["featuresDict"].get("features", {}).items():
                walk(child, (*keys, key), ragged)
            return
        if "sequence" in node:
            walk(node["sequence"]["feature"], keys, ragged + (keys != (STEPS,)))
            return
        in_steps = keys[:1] == (STEPS,)
        path, wire = ".".join(keys[1:] if in_steps else keys), "/".join(keys)
        level: Literal["step", "episode"] = "step" if in_steps else "episode"
        try:
            leaves.append(leaf_of(node, path, wire, level, ragged, where))
        except DatasetError as error:
            if unread is None:
                raise
            unread.append(Unread(path, wire, level, str(error)))

    def leaf_of(
        node: dict[str, Any],
        path: str,
        wire: str,
        level: Literal["step", "episode"],
        ragged: int,
        where: str,
    ) -> Leaf:
        kind, dtype, shape, encoding = _value(node, where)
        optional = bool(node.get("tensor", {}).get("optional"))
        leaf = Leaf(path, wire, level, kind, dtype, shape, encoding, ragged, optional)
        if leaf.kind != "image" and leaf.width == 0:
            raise DatasetError(f"{where}: shape {shape} holds nothing; remove the feature")
        if leaf.kind != "image" and leaf.width < 0 and not leaf.encoded and ragged:
            raise DatasetError(
                f"{where}: a shape {shape} that varies inside a sequence cannot be indexed; store "
                "it with encoding='zlib'"
            )
        return leaf

    walk(root, (), 0)
    steps = root.get("featuresDict", {}).get("features", {}).get(STEPS, {})
    if "sequence" not in steps:
        raise DatasetError(f"{source}: no 'steps' sequence, so this is not an RLDS dataset")
    return tuple(sorted(leaves, key=lambda leaf: leaf.level != "step"))
