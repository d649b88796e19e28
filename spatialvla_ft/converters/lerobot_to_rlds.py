"""LeRobot to RLDS, written by TensorFlow Datasets itself.

TensorFlow is imported inside: use `write` in a process that has not imported torch.

The process that writes RLDS: TensorFlow and torch must not share one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import yaml

from spatialvla_ft.converters.mapping import Entry, Mapping, read_mapping
from spatialvla_ft.converters.report import Report, from_units
from spatialvla_ft.data.cards.fields import Video
from spatialvla_ft.data.cards.files import raw_card
from spatialvla_ft.data.decode import is_common
from spatialvla_ft.data.errors import DatasetError, refuse_within
from spatialvla_ft.data.lerobot.checks import clip_troubles, row_troubles
from spatialvla_ft.data.lerobot.draft import DEPTH_SCALE, draft
from spatialvla_ft.data.lerobot.info import BOOKKEEPING, Feature
from spatialvla_ft.data.lerobot.store import TASK, LeRobotStore
from spatialvla_ft.data.lerobot.troubles import refuse
from spatialvla_ft.data.rlds.tensorflow import tensorflow_datasets

VERSION = "1.0.0"
SKIPPED = {*BOOKKEEPING} - {"timestamp"}
"""Columns that only number what RLDS numbers by its own order."""


def mapping_of(store: LeRobotStore, name: str) -> Mapping:
    """The mapping that a conversion left, or one by the names of the features."""
    kept = read_mapping(store.folder)
    if kept is not None:
        return kept
    entries = [
        _entry(store, feature)
        for key, feature in store.info.features.items()
        if key not in SKIPPED and _obstacle(store, feature) is None
    ]
    entries.append(
        Entry("language_instruction", ("language_instruction",), TASK, "task", "string", (), "")
    )
    return Mapping(name, VERSION, _card(store, entries), tuple(entries))


def _obstacle(store: LeRobotStore, feature: Feature) -> str | None:
    """Why a feature cannot go along, or None."""
    used = np.flatnonzero(store.episode_lengths > 0)
    if feature.obstacle is None and feature.dtype == "string" and len(used):
        _, file, _ = store.data_file(int(used[0]))
        if file.has(feature.key) and pa.types.is_nested(file.kind(feature.key)):
            return "several sentences per step"
    return feature.obstacle


def _entry(store: LeRobotStore, feature: Feature) -> Entry:
    """One feature of a dataset that did not come from RLDS."""
    key, last = feature.key, feature.key.split(".")[-1]
    how, path = "column", key
    dtype, shape, encoding, scale = feature.dtype, feature.shape, "", None
    if shape == (1,):
        shape = ()
    if feature.is_depth:
        how, path, dtype, scale = "depth", f"observation.depth_{last}", "uint16", 1e-4
        shape, encoding = (*_size(feature), 1), "png"
        if feature.dtype == "image" and _stored_as(store, key) == np.float32:
            dtype = "float32"
    elif feature.is_picture:
        how, path, dtype = "picture", f"observation.image_{last}", "uint8"
        # A video's frames are kept as they decode; encoded pictures stay what they are.
        shape, encoding = (*_size(feature), 3), "png" if feature.dtype == "video" else ""
    elif key.endswith("_camera_intrinsics") and feature.shape == (4,):
        camera = last.removesuffix("_camera_intrinsics")
        how, path, shape = "intrinsics", f"observation.intrinsics_{camera}", (3, 3)
    elif key.endswith("_camera_extrinsics") and np.prod(feature.shape) == 16:
        camera = last.removesuffix("_camera_extrinsics")
        how, path, shape = "extrinsics", f"observation.extrinsics_{camera}", (4, 4)
    elif feature.dtype == "string":
        how = "text"
    if dtype == "float64":
        encoding = "bytes"  # a record's own list of numbers has 32 bits
    return Entry(path, tuple(path.split(".")), key, how, dtype, shape, encoding, scale)  # type: ignore[arg-type]


def _stored_as(store: LeRobotStore, key: str) -> np.dtype[Any] | None:
    """The type of the first depth map that there is."""
    for episode, length in enumerate(store.episode_lengths.tolist()):
        for step in range(length):
            stored = store.stored_depth(key, episode, step)
            if stored is not None:
                return stored.dtype
    return None


def _size(feature: Feature) -> tuple[int, int]:
    """(height, width): some datasets put the channels first."""
    shape = feature.shape
    if len(shape) < 2:
        raise DatasetError(f"{feature.key!r} has shape {shape}; write its height and width")
    return (shape[1], shape[2]) if shape[0] in (1, 3) else (shape[0], shape[1])


def _card(store: LeRobotStore, entries: list[Entry]) -> dict[str, Any]:
    """The dataset's card, drafted if it has none, with the new names."""
    path = store.folder / "card.yaml"
    if path.exists():
        raw = raw_card(path, store.name)
    else:
        raw, _ = draft(store.info, store.folder)
    names = {entry.lerobot: entry.rlds for entry in entries}
    found = {**raw, "version": VERSION}
    found.pop("video", None)
    for field in ("cameras", "depth", "intrinsics", "extrinsics"):
        slots = raw.get(field) or {}
        found[field] = {s: names.get(v, v) if isinstance(v, str) else v for s, v in slots.items()}
    for field in ("target_point", "reference_point"):
        if raw.get(field) is not None:
            found[field] = names.get(raw[field], raw[field])
    if (raw.get("language") or {}).get("key") == TASK:
        found["language"] = {"kind": "string", "key": "language_instruction"}
    return found


def write(
    folder: Path,
    out: Path,
    name: str,
    progress: Callable[[int], None] | None = None,
) -> tuple[Path, Report]:
    """Write `out/name/VERSION`; returns that directory and what was not exact.

    Raises:
        DatasetError: the LeRobot dataset is damaged.
    """
    tfds = tensorflow_datasets()

    refuse_within(out / name, folder)
    tfds.disable_progress_bar()
    store = LeRobotStore(folder, name=name)
    own = folder / "card.yaml"
    if own.exists():
        store.go_by(Video.model_validate(raw_card(own, name).get("video") or {}))
    mapping = mapping_of(store, name)
    pictures = [entry.lerobot for entry in mapping.entries if entry.how in ("picture", "depth")]
    refuse(store.name, clip_troubles(store, pictures))
    words = any(entry.how == "task" for entry in mapping.entries)
    refuse(store.name, row_troubles(store, pictures, words=words))
    report = _losses(store, mapping)

    def examples(episodes: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for episode in episodes:
            yield episode, _example(store, mapping, episode)
            report.episodes += 1
            report.steps += int(store.episode_lengths[episode])
            if progress is not None:
                progress(report.episodes)

    class Converted(tfds.dataset_builders.AdhocBuilder, skip_registration=True):  # type: ignore[call-arg,misc]
        """A LeRobot dataset as RLDS."""

        # Nothing is downloaded. Looking for checksums, which this avoids, needs the package
        # importlib_resources, which tfds does not always bring.
        url_infos: ClassVar[dict[str, Any]] = {}

    # tfds announces itself on standard output, which belongs to the command's report.
    with contextlib.redirect_stdout(io.StringIO()):
        builder = Converted(
            name=name,
            version=mapping.version,
            features=_features(mapping),
            split_datasets={split: examples(part) for split, part in store.splits.items()},
            data_dir=out,
            description=f"{folder.name}, converted from LeRobot {store.info.version}.",
            disable_shuffling=True,
        )
        builder.download_and_prepare()
    path = Path(builder.data_dir)
    card = {"schema_version": 1, "cards": {name: mapping.card}}
    (path / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    for left_over in (out / "downloads" / "extracted", out / "downloads"):
        if left_over.is_dir() and not any(left_over.iterdir()):
            left_over.rmdir()
    return path, report


def _losses(store: LeRobotStore, mapping: Mapping) -> Report:
    """What cannot be exact, known before anything is written."""
    report = Report()
    known = {entry.lerobot for entry in mapping.entries}
    for key, feature in store.info.features.items():
        if key not in known and key not in BOOKKEEPING:
            report.left_out[key] = _obstacle(store, feature) or (
                "added after the conversion from RLDS, whose features are kept"
            )
    for entry in mapping.entries:
        stored = entry.how == "depth" and store.feature(entry.lerobot).dtype == "image"
        other = entry.dtype != "uint16" or entry.scale != DEPTH_SCALE
        if entry.how == "depth" and other and not stored:  # pictures are kept as they are
            report.inexact[entry.lerobot] = (
                f"from 0.1 mm to {entry.dtype}, {entry.scale:g} m a unit: exact where that way was"
            )
        if entry.how == "picture" and store.feature(entry.lerobot).dtype == "video":
            report.inexact[entry.lerobot] = "the frames as the video decodes, stored as PNG"
    return report


def _features(mapping: Mapping) -> Any:
    tfds = tensorflow_datasets()

    tree: dict[str, Any] = {}
    for entry in mapping.entries:
        keys = entry.keys if entry.how == "episode" else ("steps", *entry.keys)
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = _feature(entry)
    steps = tfds.features.Dataset(tree.pop("steps"))
    return tfds.features.FeaturesDict({"steps": steps, **tree})


def _feature(entry: Entry) -> Any:
    tfds = tensorflow_datasets()

    kinds = tfds.features
    shape = tuple(None if size < 0 else size for size in entry.shape)
    if entry.how in ("picture", "depth"):
        size = shape or (None, None, 1 if entry.how == "depth" else 3)
        dtype = np.dtype(entry.dtype)
        return kinds.Image(shape=size, dtype=dtype, encoding_format=entry.encoding or None)
    if entry.dtype == "string":
        return kinds.Text()
    dtype = np.dtype(entry.dtype)
    if not shape and not entry.encoding:
        return kinds.Scalar(dtype=dtype)
    return kinds.Tensor(shape=shape, dtype=dtype, encoding=entry.encoding or "none")


def _example(store: LeRobotStore, mapping: Mapping, episode: int) -> dict[str, Any]:
    length = int(store.episode_lengths[episode])
    keys = [e.lerobot for e in mapping.entries if e.how not in ("picture", "depth", "episode")]
    columns = store.trajectory(episode, tuple(keys))
    example: dict[str, Any] = {}
    for entry in mapping.entries:
        if entry.how == "episode":
            _put(example, entry.keys, _episode_value(store, episode, entry))
    steps = []
    for step in range(length):
        content: dict[str, Any] = {}
        for entry in mapping.entries:
            if entry.how != "episode":
                _put(content, entry.keys, _step_value(store, columns, entry, episode, step))
        steps.append(content)
    return {"steps": steps, **example}


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _episode_value(store: LeRobotStore, episode: int, entry: Entry) -> Any:
    value = store.episodes.extra(episode)[entry.lerobot]
    return value if entry.dtype == "string" else np.asarray(value, entry.dtype)


def _step_value(store: LeRobotStore, columns: Any, entry: Entry, episode: int, step: int) -> Any:
    key = entry.lerobot
    if entry.how == "depth":
        units = store.stored_depth(key, episode, step)
        if units is None:
            return b""
        kept = from_units(units, entry.scale or 1.0, np.dtype(entry.dtype))
        if entry.scale == DEPTH_SCALE and not np.array_equal(kept, units, equal_nan=True):
            raise DatasetError(
                f"{store.name}, {key!r}, episode {episode}, step {step}: depth of {units.dtype} up "
                f"to {units.max()} does not fit into {entry.dtype}; write it as uint16 or float32"
            )
        return kept[..., None]
    if entry.how == "picture":
        if store.feature(key).dtype == "image":
            data = store.image_bytes(key, episode, step)
            if not data or is_common(data):
                return data
        return store.rgb(key, episode, step)
    value = columns[key][step]
    if entry.how in ("task", "text"):
        return str(value)
    if entry.how == "intrinsics":
        fx, fy, cx, cy = value
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], entry.dtype)
    return np.asarray(value, entry.dtype).reshape(entry.shape)


def run(channel: Any, folder: Path, out: Path, name: str) -> None:
    """Send the number of episodes after each, then (directory, report) at the end."""
    path, report = write(folder, out, name, progress=channel.send)
    channel.send((str(path), report.to_dict()))
