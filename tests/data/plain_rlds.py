"""Small RLDS datasets written byte by byte, without TensorFlow: also such as tfds would not write.

A column is a `Spec`: what features.json says of it, and its values, which may contradict that.
"""

import itertools
import json
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from spatialvla_ft.data.rlds.records import framed

NAME = "made"
CARD = {
    "version": "1.0.0",
    "control_hz": 5,
    "cameras": {"primary": "observation.image"},
    "language": {"kind": "string", "key": "language_instruction"},
    "action": {
        "encoding": "EEF_POS",
        "translation": ["action[0:3]"],
        "rotation": {"raw": "labelled_euler", "terms": ["action[3:6]"]},
        "gripper": ["action[6:7]"],
    },
}


def tensor(*shape, dtype="float32", encoding="none"):
    """The node of a tensor; None is a length that varies."""
    sizes = [str(-1 if size is None else size) for size in shape]
    told = {"shape": {"dimensions": sizes}, "dtype": dtype, "encoding": encoding}
    return {"pythonClassName": "tensorflow_datasets.features.Tensor", "tensor": told}


TEXT = {"pythonClassName": "tensorflow_datasets.features.Text", "text": {}}
IMAGE = {
    "pythonClassName": "tensorflow_datasets.features.Image",
    "image": {
        "shape": {"dimensions": ["8", "6", "3"]},
        "dtype": "uint8",
        "encodingFormat": "png",
    },
}


def sequence(node):
    """A sequence of any length of a feature."""
    return {"sequence": {"feature": node}}


@dataclass
class Spec:
    """A column.

    Attributes:
        node: of features.json.
        values: of every episode the flat list of its record; None leaves the key out of the
            record, [] writes a feature without a value.
        per: step or episode.
        rows: of a sequence, of every episode the lengths.
    """

    node: dict
    values: list
    per: str = "step"
    rows: list | None = field(default=None)


def write(root, columns, *, episodes, card=None):
    """Write ROOT/made/1.0.0 with its card; returns the directory.

    An episode's column with the name of one of the steps has `episode/` in front.
    """
    folder = root / NAME / "1.0.0"
    folder.mkdir(parents=True)
    steps, whole = {}, {}
    for key, spec in columns.items():
        keys = key.removeprefix("episode/").split(".")
        _put(steps if spec.per == "step" else whole, keys, spec.node)
    tree = {**whole, "steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}}}}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": tree}}))
    shard = f"{NAME}-train.tfrecord-00000-of-00001"
    split = {"name": "train", "shardLengths": [str(episodes)], "numBytes": "0"}
    info = {"name": NAME, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    records = [framed(_example(columns, number)) for number in range(episodes)]
    (folder / shard).write_bytes(b"".join(records))
    content = {"schema_version": 1, "cards": {NAME: CARD if card is None else card}}
    (folder / "card.yaml").write_text(json.dumps(content))  # JSON is YAML
    return folder


def _put(tree, keys, node):
    for key in keys[:-1]:
        tree = tree.setdefault(key, {"featuresDict": {"features": {}}})["featuresDict"]["features"]
    tree[keys[-1]] = node


def _example(columns, episode):
    entries = []
    for key, spec in columns.items():
        path = key.removeprefix("episode/").replace(".", "/")
        wire = f"steps/{path}" if spec.per == "step" else path
        values = spec.values[episode]
        if values is None:
            continue
        if spec.rows is not None:
            lengths = spec.rows[episode]
            entries.append(_entry(f"{wire}/ragged_row_lengths_0", lengths))
            wire += "/ragged_flat_values"
        entries.append(_entry(wire, values))
    return _part(1, b"".join(entries))


def _entry(key, values):
    values = list(values)
    if not values:
        feature = b""
    elif isinstance(values[0], bytes):
        feature = _part(1, b"".join(_part(1, value) for value in values))
    elif isinstance(values[0], float | np.floating):
        feature = _part(2, _part(1, struct.pack(f"<{len(values)}f", *values)))
    else:
        feature = _part(3, _part(1, b"".join(_varint(int(v) % 2**64) for v in values)))
    return _part(1, _part(1, key.encode()) + _part(2, feature))


def _varint(number):
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def _part(number, payload):
    """Field `number` of a message, as bytes."""
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def picture(number):
    """A PNG of 6 x 8 pixels, all of which say `number`."""
    row = b"\0" + bytes([number % 256, number // 256, 7]) * 6
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 6, 8, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(row * 8),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def number_of(image):
    """What a picture says."""
    pixel = image[0, 0].astype(int)
    assert (image == image[0, 0]).all()
    return int(pixel[0] + 256 * pixel[1])


def robot(lengths, words=None):
    """Columns of a robot whose action, state and picture say which step of all it is.

    Args:
        lengths: steps of every episode.
        words: the Spec of `language_instruction`; one sentence per episode if not given.
    """
    starts = np.cumsum([0, *lengths])
    numbers = [range(a, b) for a, b in itertools.pairwise(starts)]

    def rows(width):
        return [[float(n + j / 8) for n in part for j in range(width)] for part in numbers]

    said = [[f"go {e}".encode()] * len(part) for e, part in enumerate(numbers)]
    return {
        "observation.image": Spec(IMAGE, [[picture(n) for n in part] for part in numbers]),
        "observation.state": Spec(tensor(8), rows(8)),
        "action": Spec(tensor(7), rows(7)),
        "language_instruction": words or Spec(TEXT, said),
    }
