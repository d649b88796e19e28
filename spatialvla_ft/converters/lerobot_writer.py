"""Writing LeRobot datasets of format v3.0."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spatialvla_ft.converters.lerobot_meta import Moments, moments_of_picture, readme
from spatialvla_ft.converters.video_writer import Codec, VideoWriter
from spatialvla_ft.data.decode import decode_rgb
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import BOOKKEEPING, INFO, Feature
from spatialvla_ft.data.sampler import evenly_spaced

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def arrow_schema(features: dict[str, Feature]) -> pa.Schema:
    """Schema of the data files: all features but videos, with what `datasets` calls them."""
    stored = {key: feature for key, feature in features.items() if feature.dtype != "video"}
    named = {key: _hugging_face(feature) for key, feature in stored.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": named}})}
    return pa.schema([(key, _arrow(f)) for key, f in stored.items()], metadata=metadata)


def grown_schema(schema: pa.Schema, feature: Feature) -> pa.Schema:
    """The schema of a data file with a further feature, also in what `datasets` calls them."""
    metadata = dict(schema.metadata or {})
    if b"huggingface" in metadata:
        told = json.loads(metadata[b"huggingface"])
        told.setdefault("info", {}).setdefault("features", {})[feature.key] = _hugging_face(feature)
        metadata[b"huggingface"] = json.dumps(told).encode()
    return schema.append(pa.field(feature.key, _arrow(feature))).with_metadata(metadata or None)


def _arrow(feature: Feature) -> pa.DataType:
    if feature.dtype == "image":
        return PICTURE
    if feature.dtype == "string":
        return pa.string()
    kind = pa.from_numpy_dtype(np.dtype(feature.dtype))
    if feature.shape == (1,):
        return kind
    if len(feature.shape) == 1:
        return pa.list_(kind, feature.shape[0])
    for _ in feature.shape:
        kind = pa.list_(kind)
    return kind


def _hugging_face(feature: Feature) -> dict[str, Any]:
    if feature.dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "Sequence"}
    rank = len(feature.shape)
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{rank}D"}


def to_arrow(feature: Feature, values: NDArray[Any] | list[bytes]) -> pa.Array:
    """A column of one episode.

    Raises:
        DatasetError: the values do not have the feature's shape or type.
    """
    if feature.dtype == "image":
        return pa.array([{"bytes": data, "path": None} for data in values], PICTURE)
    if feature.dtype == "string":
        return pa.array([str(value) for value in values], pa.string())
    array = np.asarray(values)
    wanted = (len(array), *(() if feature.shape == (1,) else feature.shape))
    if feature.shape == (1,) and array.shape == (len(array), 1):
        array = array[:, 0]
    if array.shape != wanted or array.dtype != np.dtype(feature.dtype):
        raise DatasetError(
            f"{feature.key!r} must be {feature.dtype} of shape {wanted}, got {array.dtype} of "
            f"shape {array.shape}"
        )
    flat = pa.array(np.ascontiguousarray(array).ravel())
    if array.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    for size in reversed(array.shape[1:]):
        offsets = np.arange(0, len(flat) + 1, size, dtype=np.int32)
        flat = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return flat


VERSION = "v3.0"
CHUNK = 1000
DATA_MB, VIDEO_MB = 100, 200
PICTURE_ROWS = 8
"""Rows of a row group where pictures lie in the data files: what one random picture reads.

Of 20 KB JPEGs one costs 0.4 ms of CPU with 8 rows, 1.4 with 32, 5.2 with 128, 9.7 with 1000."""
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
MEASURED = 4
"""Pictures of an episode that the statistics look at."""


class LeRobotWriter:
    """A dataset in a new folder, episode by episode; `close` makes it complete.

    Args:
        folder: new, or empty.
        fps: steps per second.
        features: columns, images and videos, without LeRobot's own bookkeeping columns.
        codecs: of every video feature.
        robot_type: name of the robot.

    Raises:
        DatasetError: the folder is in use, or a name is not allowed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fps: float,
        features: Mapping[str, Feature],
        codecs: Mapping[str, Codec],
        robot_type: str | None = None,
    ) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise DatasetError(f"{folder} is not empty; remove it, or give another folder")
        for key in features:
            if "/" in key or key in BOOKKEEPING:
                raise DatasetError(f"feature {key!r}: names have no '/' and are not {BOOKKEEPING}")
        videos = {key for key, feature in features.items() if feature.dtype == "video"}
        if videos != set(codecs):
            raise DatasetError(f"codecs are for {sorted(codecs)}, the videos are {sorted(videos)}")
        self.folder = folder
        self.fps = fps
        self.robot_type = robot_type
        self.features = {**features, **_bookkeeping()}
        self.codecs = dict(codecs)
        self.lengths: list[int] = []
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._totals: dict[str, Moments] = {}
        self._schema = arrow_schema(self.features)
        self._data: pq.ParquetWriter | None = None
        self._data_file = 0
        self._data_bytes = 0
        self._videos: dict[str, VideoWriter] = {}
        self._video_file = dict.fromkeys(codecs, 0)
        self._closed = False

    def __enter__(self) -> LeRobotWriter:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the dataset, or only let go of its files after an error."""
        if kind is None:
            self.close()
        else:
            self._close_files()

    def add_episode(
        self,
        columns: Mapping[str, NDArray[Any]],
        *,
        tasks: list[str],
        images: Mapping[str, list[bytes]],
        videos: Mapping[str, Iterable[NDArray[Any]]],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an episode.

        Args:
            columns: (steps, ...) arrays.
            tasks: what the robot was told at each step.
            images: encoded pictures of every image feature.
            videos: frames of every video feature, (H, W, 3) uint8 or (H, W) uint16.
            extra: further entries of `meta/episodes`.
        """
        given, wanted = {*columns, *images, *videos}, set(self.features) - set(BOOKKEEPING)
        if given != wanted or not tasks:
            raise DatasetError(
                f"an episode needs {sorted(wanted)} and a task per step, got {sorted(given)} and "
                f"{len(tasks)} tasks"
            )
        number, length = len(self.lengths), len(tasks)
        first = sum(self.lengths)
        steps = np.arange(length, dtype=np.int64)
        own: dict[str, NDArray[Any]] = {
            "timestamp": (steps / self.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number, np.int64),
            "index": first + steps,
            "task_index": np.array(
                [self._tasks.setdefault(task, len(self._tasks)) for task in tasks], np.int64
            ),
        }
        moments = self._write_rows({**columns, **own}, images, length)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": list(dict.fromkeys(tasks)),
            "length": length,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
            **_place("data", self._data_file),
            **_place("meta/episodes", 0),
        }
        for key, frames in videos.items():
            clip, seen = self._write_frames(key, frames, length)
            row |= clip
            moments[key] = seen
        for key, found in moments.items():
            self._totals[key] = self._totals[key] + found if key in self._totals else found
            listed = found.to_json(picture=self.features[key].is_picture)
            row |= {f"stats/{key}/{name}": value for name, value in listed.items()}
        self._rows.append({**row, **(extra or {})})
        self.lengths.append(length)

    def _write_rows(
        self, columns: Mapping[str, NDArray[Any]], images: Mapping[str, list[bytes]], length: int
    ) -> dict[str, Moments]:
        if self._data is not None and self._data_bytes > DATA_MB * 2**20:
            self._data.close()
            self._data, self._data_bytes = None, 0
            self._data_file += 1
        if self._data is None:
            path = self.folder / DATA.format(**_numbers(self._data_file))
            path.parent.mkdir(parents=True, exist_ok=True)
            coded = [key for key in self._schema.names if key not in images]
            self._data = pq.ParquetWriter(path, self._schema, use_dictionary=coded)
        arrays = []
        for name in self._schema.names:
            values = images[name] if name in images else columns[name]
            if len(values) != length:
                raise DatasetError(f"{name!r} has {len(values)} steps, the episode has {length}")
            arrays.append(to_arrow(self.features[name], values))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._data.write_table(table, row_group_size=PICTURE_ROWS if images else None)
        self._data_bytes += table.nbytes
        moments = {
            key: Moments.of(np.asarray(values))
            for key, values in columns.items()
            if self.features[key].dtype not in ("string", "bool")
        }
        for key, pictures in images.items():
            shown = [
                decode_rgb(pictures[i]) for i in evenly_spaced(length, MEASURED) if pictures[i]
            ]
            for picture in shown if not self.features[key].is_depth else ():
                seen = moments_of_picture(picture)
                moments[key] = moments[key] + seen if key in moments else seen
        return moments

    def _write_frames(
        self, key: str, frames: Iterable[NDArray[Any]], length: int
    ) -> tuple[dict[str, Any], Moments]:
        """(columns of `meta/episodes`, moments of a few frames)."""
        video = self._videos.get(key)
        if video is not None and video.size > VIDEO_MB * 2**20:
            video.close()
            video = None
            self._video_file[key] += 1
        if video is None:
            path = VIDEO.format(video_key=key, **_numbers(self._video_file[key]))
            video = VideoWriter(self.folder / path, self.fps, self.codecs[key])
            self._videos[key] = video
        start, before, looked = video.seconds, video.frames, set(evenly_spaced(length, MEASURED))
        moments: Moments | None = None
        for i, frame in enumerate(frames):
            video.write(frame)
            if i in looked:
                seen = moments_of_picture(frame)
                moments = seen if moments is None else moments + seen
        written = video.frames - before
        if written != length or moments is None:
            raise DatasetError(f"{key!r} has {written} frames, the episode has {length} steps")
        clip = {
            **_place(f"videos/{key}", self._video_file[key]),
            f"videos/{key}/from_timestamp": start,
            f"videos/{key}/to_timestamp": video.seconds,
        }
        return clip, moments

    def _close_files(self) -> None:
        if self._data is not None:
            self._data.close()
        for video in self._videos.values():
            video.close()

    def close(self, splits: Mapping[str, range] | None = None) -> None:
        """Finish all files and write `meta/`; all episodes are `train` unless `splits` are given.

        Raises:
            DatasetError: there are no episodes.
        """
        if self._closed:
            return
        self._closed = True
        if not self._rows:
            raise DatasetError(f"{self.folder}: a dataset needs at least one episode")
        self._close_files()
        path = self.folder / EPISODES.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self._rows), path)
        _write_tasks(self.folder / "meta/tasks.parquet", self._tasks)
        stats = {
            key: found.to_json(picture=self.features[key].is_picture)
            for key, found in self._totals.items()
            if found.complete  # JSON has no NaN
        }
        _write_json(self.folder / "meta/stats.json", stats)
        ranges = splits or {"train": range(len(self._rows))}
        info = {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(self._rows),
            "total_frames": sum(self.lengths),
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": int(self.fps) if float(self.fps).is_integer() else self.fps,
            "splits": {name: f"{part.start}:{part.stop}" for name, part in ranges.items()},
            "data_path": DATA,
            "video_path": VIDEO if self.codecs else None,
            "features": {key: _to_json(f) for key, f in self.features.items()},
        }
        _write_json(self.folder / INFO, info)
        (self.folder / "README.md").write_text(readme(info), encoding="utf-8")


def _bookkeeping() -> dict[str, Feature]:
    return {
        key: Feature(key, "float32" if key == "timestamp" else "int64", (1,), None, {})
        for key in BOOKKEEPING
    }


def _numbers(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNK, "file_index": file % CHUNK}


def _place(what: str, file: int) -> dict[str, int]:
    return {f"{what}/{name}": number for name, number in _numbers(file).items()}


def _to_json(feature: Feature) -> dict[str, Any]:
    names = None if feature.names is None else list(feature.names)
    node: dict[str, Any] = {"dtype": feature.dtype, "shape": list(feature.shape), "names": names}
    return {**node, "info": feature.info} if feature.is_picture else node


def _write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """The words are the table's index, as LeRobot reads it with pandas."""
    import pandas

    frame = pandas.DataFrame({"task_index": list(tasks.values())}, index=list(tasks))
    frame.to_parquet(path)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
