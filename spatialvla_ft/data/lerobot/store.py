"""A LeRobot dataset as an `EpisodeStore`."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64, UInt8
from numpy.typing import NDArray

from spatialvla_ft.data.cards.fields import Video
from spatialvla_ft.data.decode import decode_depth, decode_rgb
from spatialvla_ft.data.errors import DatasetError, no_feature
from spatialvla_ft.data.lerobot.data_files import DataFile, DataFiles, to_floats, to_numpy
from spatialvla_ft.data.lerobot.episodes import read_episodes
from spatialvla_ft.data.lerobot.info import BOOKKEEPING, INFO, Feature, licence_of_readme, read_info
from spatialvla_ft.data.lerobot.rows import Rows
from spatialvla_ft.data.lerobot.tasks import read_tasks, task_troubles
from spatialvla_ft.data.lerobot.troubles import refuse
from spatialvla_ft.data.lerobot.video import Decoders
from spatialvla_ft.data.store import Column, Field, Kind

CACHED_EPISODES = 256
TASK = "task"
"""The column with the words of a step's task."""
TASK_INDEX = "task_index"
CLOCKS = ("timestamp", "frame_index")
Read = TypeVar("Read")


class _Part(dict[str, NDArray[Any]]):
    """What is in memory of one episode: columns by their key, and what is ready to become them."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, pa.ChunkedArray] = {}
        self.seconds: dict[str, Float64[np.ndarray, " T"]] = {}


class LeRobotStore:
    """Episodes of a LeRobot dataset; may cross fork and spawn.

    Only columns that are asked for are read: what else a dataset holds may be large, empty or of a
    kind that is not known here.

    Args:
        folder: the one with `meta/`, `data/` and `videos/`.
        name: of the dataset; the folder's own if not given.
        fast_dct: decode JPEG as TensorFlow does, see `decode_rgb`.
        video: how frames of videos are found, from the dataset's card.

    Attributes:
        checked_rows: videos of which every row was found to be right, so that none is looked at
            once more when it is read.

    Raises:
        DatasetError: no LeRobot dataset, or a version that is not read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        fast_dct: bool = True,
        video: Video | None = None,
    ) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        self.fast_dct = fast_dct
        self.info = read_info(folder)
        self.episodes = read_episodes(folder, self.info)
        self.files = DataFiles(folder)
        self._decoders = Decoders(self.info.fps)
        self._wanted: dict[str, None] = {}
        self.go_by(video or Video())

    def go_by(self, video: Video) -> None:
        """Find frames of videos as a card says."""
        self.video = video
        self._cache: OrderedDict[int, _Part] = OrderedDict()
        self._owned: dict[str, Float64[np.ndarray, " n"]] = {}
        self.checked_rows: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __repr__(self) -> str:
        return f"LeRobotStore({self.name}, {self.info.version}: {len(self.episodes)} episodes)"

    @property
    def label(self) -> str:
        """The dataset's name; LeRobot datasets carry no version of their own."""
        return self.name

    @property
    def splits(self) -> Mapping[str, range]:
        """Name of a split to its episodes."""
        return self.info.splits

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode."""
        return self.episodes.lengths

    @cached_property
    def tasks(self) -> dict[int, str]:
        """Number of a task to its words; DatasetError if the table of tasks is missing or odd."""
        return read_tasks(self.folder, self.info)

    @cached_property
    def content_hash(self) -> str:
        """Changes with `info.json`, the tasks, or the size or time of a data file."""
        digest = hashlib.sha256((self.folder / INFO).read_bytes())
        try:
            digest.update(json.dumps(sorted(self.tasks.items())).encode())
        except DatasetError as error:  # told where a card reads the words
            digest.update(str(error).encode())
        paths, known = sorted(self.episodes.data.paths()), self.episodes.data.known
        if not known.all() or not all((self.folder / path).is_file() for path in paths):
            files = sorted((self.folder / "data").rglob("*.parquet"))
            paths = [path.relative_to(self.folder).as_posix() for path in files]
        for path in paths:
            state = (self.folder / path).stat()
            digest.update(json.dumps([path, state.st_size, state.st_mtime_ns]).encode())
        return digest.hexdigest()

    @property
    def licence(self) -> str | None:
        """From the front matter of its README.md."""
        return licence_of_readme(self.folder)

    @property
    def statistics_dir(self) -> Path:
        """Hidden in the folder; uploads leave it out."""
        return self.folder / ".spatialvla_ft" / "statistics"

    def feature(self, key: str) -> Feature:
        """A feature; DatasetError with those there are."""
        if key not in self.info.features:
            raise no_feature(self.name, key, self.info.features)
        return self.info.features[key]

    def check_column(self, key: str) -> Column:
        """What a column holds; DatasetError unless `key` is one that can be read."""
        if key == TASK:
            _ = self.tasks
            return Column("words", ())
        feature = self.feature(key)
        if feature.is_picture:
            raise DatasetError(f"{key!r} of {self.name} is a picture, not a column")
        if feature.obstacle is not None:
            raise DatasetError(f"{key!r} of {self.name} cannot be read: {feature.obstacle}")
        shape = () if feature.shape == (1,) else feature.shape
        return Column("words" if feature.dtype == "string" else "numbers", shape)

    def check_image(self, key: str, *, depth: bool) -> None:
        """DatasetError unless `key` is a picture of the kind asked for; depth may be numbers."""
        feature = self.feature(key)
        if feature.obstacle is not None:
            raise DatasetError(f"{key!r} of {self.name} cannot be read: {feature.obstacle}")
        if depth and feature.is_map:
            return
        if not feature.is_picture:
            raise DatasetError(f"{key!r} of {self.name} is a column ({feature.dtype}), no picture")
        if feature.is_depth != depth:
            kinds = ("colour", "depth")
            raise DatasetError(
                f"{key!r} of {self.name} is {kinds[feature.is_depth]}, the card wants "
                f"{kinds[depth]}; depth features are called depth.<camera>, or have "
                "is_depth_map: true in their info in meta/info.json"
            )

    def trajectory(
        self, episode: int, keys: tuple[str, ...], steps: range | None = None
    ) -> Mapping[str, Any]:
        """Columns of an episode, or of some steps of it; `task` gives the words of every step."""
        part = slice(None) if steps is None else slice(steps.start, steps.stop)
        return {key: self._column(episode, key, keys)[part] for key in keys}

    def value(self, key: str, episode: int, step: int) -> Any:
        """A column at one step."""
        return self._column(episode, key)[step]

    def rgb(self, key: str, episode: int, step: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A picture; None where an image column is empty."""

        def read() -> UInt8[np.ndarray, "H W 3"] | None:
            if self.feature(key).dtype == "video":
                return self._decoders.rgb(*self._moment(key, episode, step))
            data = self._encoded(key, episode, step)
            return decode_rgb(data, fast_dct=self.fast_dct) if data else None

        return self._told(read, key, episode, step)

    def stored_depth(self, key: str, episode: int, step: int) -> NDArray[Any] | None:
        """(H, W) depth in its stored unit; None where an image column is empty."""

        def read() -> NDArray[Any] | None:
            feature = self.feature(key)
            if feature.dtype == "video":
                return self._decoders.depth(*self._moment(key, episode, step))
            if feature.is_map:
                column = self._row(key, episode, step)
                stored: NDArray[Any] = to_numpy(column, feature, "stored")[0]
                return stored.reshape(feature.map_size)
            data = self._encoded(key, episode, step)
            return decode_depth(data, None) if data else None

        return self._told(read, key, episode, step)

    def image_bytes(self, key: str, episode: int, step: int) -> bytes:
        """Encoded picture of an image column, b"" where it is empty."""
        return self._told(lambda: self._encoded(key, episode, step), key, episode, step)

    def moment(self, key: str, episode: int, step: int) -> tuple[Path, float]:
        """Video file and seconds into it."""
        return self._told(lambda: self._moment(key, episode, step), key, episode, step)

    def data_file(self, episode: int) -> tuple[str, DataFile, int]:
        """(path, file, first row) of an episode with steps."""
        path = self.data_path(episode)
        file = self.files.open(path)
        return path, file, file.first(episode)

    def _told(self, read: Callable[[], Read], key: str, episode: int, step: int) -> Read:
        """What `read` gives; its errors say which picture it was."""
        try:
            return read()
        except DatasetError as error:
            raise DatasetError(
                f"{self.name}, {key!r}, episode {episode}, step {step}: {error}"
            ) from error

    def _encoded(self, key: str, episode: int, step: int) -> bytes:
        entry = self._row(key, episode, step)[0].as_py()
        if isinstance(entry, dict):
            data, name = entry.get("bytes"), entry.get("path")
            if not data and name:
                return self._beside(key, str(name), episode)
            entry = data
        if not isinstance(entry, bytes | None):
            raise DatasetError(f"it is stored as {type(entry).__name__}, not as an encoded picture")
        return entry or b""

    def _row(self, key: str, episode: int, step: int) -> Any:
        """A column at one step, as it is stored."""
        _, file, first = self.data_file(episode)
        return file.rows(first + step, 1, [key]).column(key)

    def _beside(self, key: str, name: str, episode: int) -> bytes:
        """A picture that lies as a file in the dataset's folder."""
        folder = self.folder.resolve()
        # Recorders keep the path on their own machine, or the last part of it.
        inside = name[name.rindex("images/") :] if "images/" in name else name
        parts = (f"images/{key}/episode{sign}{episode:06d}/{name}" for sign in "_-")
        for place in (name, inside, *parts):
            path = (folder / place).resolve()
            if path.is_relative_to(folder) and path.is_file():
                return path.read_bytes()
        raise DatasetError(
            f"picture {name!r} lies neither in the parquet file nor in {self.folder}; fetch the "
            "dataset again"
        )

    def _moment(self, key: str, episode: int, step: int) -> tuple[Path, float]:
        clips, part = self.episodes.clips[key], self._part(episode)
        if key not in part.seconds:
            part.seconds[key] = self._seconds(key, episode)
        seconds = float(part.seconds[key][step])
        return self.folder / clips.path(episode), float(clips.starts[episode]) + seconds

    def _seconds(self, key: str, episode: int) -> Float64[np.ndarray, " T"]:
        """From the start of an episode's clip to the frame of every step, checked."""
        length = int(self.episode_lengths[episode])
        stored = self._fetch(episode, CLOCKS)
        clocks = [to_floats(stored[k], k, self.name) if k in stored else None for k in CLOCKS]
        rows = Rows(np.full(length, episode, np.int64), np.arange(length), *clocks)
        if key not in self.checked_rows:
            owned = {key: self.owned_frames(key)}
            refuse("", rows.troubles(self.info.fps, self.video.time, owned))
        return rows.frames(self.info.fps, self.video.time) / self.info.fps

    def owned_frames(self, key: str) -> Float64[np.ndarray, " n"]:
        """Frames of each episode's clip; DatasetError where the clips cannot be right."""
        if key not in self._owned:
            clips = self.episodes.clips[key]
            rules = self.episode_lengths, self.info.fps
            troubles = clips.troubles(*rules, shared=self.video.shared)
            refuse("", [trouble for trouble in troubles if trouble.serious])
            self._owned[key] = clips.owned(*rules, shared=self.video.shared)
        return self._owned[key]

    def data_path(self, episode: int) -> str:
        """The file with the rows of an episode."""
        if not 0 <= episode < len(self.episodes):
            raise IndexError(f"episode {episode} of {self.name}: it has {len(self.episodes)}")
        length = int(self.episode_lengths[episode])
        return self.files.find(episode, length, self.episodes.data.path(episode))

    def _part(self, episode: int) -> _Part:
        """What is kept of an episode; the last few are."""
        found = self._cache.pop(episode, None)
        if found is None:
            found = _Part()
            if len(self._cache) >= CACHED_EPISODES:
                self._cache.popitem(last=False)
        self._cache[episode] = found
        return found

    def kind(self, key: str) -> Feature:
        """What a column holds; LeRobot's own may be left out of `meta/info.json`."""
        if key in BOOKKEEPING and key not in self.info.features:
            return Feature(key, "float32" if key == "timestamp" else "int64", (1,), None, {})
        return self.feature(key)

    def _column(self, episode: int, key: str, along: Iterable[str] = ()) -> NDArray[Any]:
        """A column of an episode, read together with those that come along, and kept."""
        part = self._part(episode)
        if key not in part:
            part[key] = (
                self._words(episode) if key == TASK else self._read(episode, key, part, along)
            )
        return part[key]

    def _read(self, episode: int, key: str, part: _Part, along: Iterable[str]) -> NDArray[Any]:
        kind = self.kind(key)
        if key not in BOOKKEEPING:
            self.check_column(key)
        more = (TASK_INDEX if k == TASK else k for k in along)
        stored = self._fetch(episode, [key, *(k for k in more if k not in part)])
        if key not in stored:
            _, file, first = self.data_file(episode)
            file.rows(first, 1, [key])  # tells that it is missing
        return to_numpy(stored.pop(key), kind, f"{self.name}, episode {episode}")

    def _fetch(self, episode: int, keys: Iterable[str]) -> dict[str, pa.ChunkedArray]:
        """Columns as they are stored, those of these that the file has among them.

        What was asked for of other episodes will be of this one: one visit to the file for all.
        """
        part, asked = self._part(episode), dict.fromkeys(keys)
        if not asked.keys() <= part.stored.keys():
            _, file, first = self.data_file(episode)
            self._wanted |= asked
            absent = [k for k in self._wanted if file.has(k) and k not in part.stored]
            names = [k for k in absent if k in asked or k not in part]
            table = file.rows(first, int(self.episode_lengths[episode]), names)
            part.stored |= {name: table.column(name) for name in names}
        return part.stored

    def _words(self, episode: int) -> NDArray[Any]:
        numbers = self._column(episode, TASK_INDEX)
        if len(self.tasks) > 1 or not set(numbers.tolist()) <= self.tasks.keys():
            owners = np.full(len(numbers), episode, np.int64)
            steps = np.arange(len(numbers))
            refuse(self.name, task_troubles(numbers, owners, steps, self.tasks, self.episodes))
        return np.array([self.tasks[number] for number in numbers.tolist()], dtype=object)


class LeRobotSource:
    """A LeRobot dataset, v2.1 or v3.0."""

    def __init__(self, store: LeRobotStore) -> None:
        self.store = store
        self.name, self.version = store.name, store.info.version
        self.format = "LeRobot"
        self.fps: float | None = store.info.fps
        self.robot = store.info.robot_type
        words = Field(TASK, "words", "string", (), "step")
        self.fields = (*map(_field, store.info.features.values()), words)

    @property
    def splits(self) -> Mapping[str, range]:
        """Name of a split to its episodes."""
        return self.store.splits

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode."""
        return self.store.episode_lengths

    def trajectory(self, episode: int, keys: tuple[str, ...]) -> Mapping[str, Any]:
        """Columns of an episode."""
        return self.store.trajectory(episode, keys)

    def value(self, key: str, episode: int, step: int) -> Any:
        """A column at one step."""
        return self.store.value(key, episode, step)

    def rgb(self, key: str, episode: int, step: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A picture, or None where an image column is empty."""
        return self.store.rgb(key, episode, step)

    def stored_depth(self, key: str, episode: int, step: int) -> NDArray[Any] | None:
        """(H, W) depth as it is stored, or None where an image column is empty."""
        return self.store.stored_depth(key, episode, step)


def _field(feature: Feature) -> Field:
    kind: Kind = "words" if feature.dtype == "string" else "numbers"
    if feature.obstacle is not None:
        kind = "other"
    elif feature.is_picture:
        kind = "depth" if feature.is_depth else "picture"
    elif feature.is_map and "depth" in feature.key.lower():
        kind = "depth"
    stored = str(feature.info.get("video.codec", feature.dtype)) if feature.is_picture else ""
    dtype = "uint8" if feature.is_picture and not feature.is_depth else feature.dtype
    shape = () if feature.shape == (1,) else feature.shape
    names, note = feature.names or (), feature.obstacle or ""
    return Field(feature.key, kind, dtype, shape, "step", stored, names, note)
