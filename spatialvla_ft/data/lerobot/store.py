"""A LeRobot dataset as an `EpisodeStore`."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from spatialvla_ft.data.decode import decode_depth, decode_rgb
from spatialvla_ft.data.errors import DatasetError, no_feature
from spatialvla_ft.data.lerobot.columns import DataFiles, to_numpy
from spatialvla_ft.data.lerobot.episodes import read_episodes, read_tasks
from spatialvla_ft.data.lerobot.info import INFO, Feature, read_info
from spatialvla_ft.data.lerobot.readme import licence_of_readme
from spatialvla_ft.data.lerobot.video import Decoders

CACHED_EPISODES = 256
TASK = "task"
"""The column with the words of a step's task."""


class LeRobotStore:
    """Episodes of a LeRobot dataset; may cross fork and spawn.

    Args:
        folder: the one with `meta/`, `data/` and `videos/`.
        name: of the dataset; the folder's own if not given.
        fast_dct: decode JPEG as TensorFlow does, see `decode_rgb`.

    Raises:
        DatasetError: no LeRobot dataset, or a version that is not read.
    """

    def __init__(self, folder: Path, *, name: str | None = None, fast_dct: bool = True) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        self.fast_dct = fast_dct
        self.info = read_info(folder)
        self.episodes = read_episodes(folder, self.info)
        self.tasks = read_tasks(folder, self.info)
        self._columns = tuple(k for k, f in self.info.features.items() if not f.is_picture)
        self._files = DataFiles(folder)
        self._decoders = Decoders(self.info.fps)
        self._cache: OrderedDict[int, dict[str, Any]] = OrderedDict()

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

    @cached_property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode."""
        return np.array([episode.length for episode in self.episodes], np.int64)

    @cached_property
    def content_hash(self) -> str:
        """Changes with `info.json`, the tasks, or the size or time of a data file."""
        digest = hashlib.sha256((self.folder / INFO).read_bytes())
        digest.update(json.dumps(sorted(self.tasks.items())).encode())
        for path in sorted({episode.data for episode in self.episodes}):
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

    def check_column(self, key: str) -> None:
        """DatasetError unless `key` is a column."""
        if key != TASK and self.feature(key).is_picture:
            raise DatasetError(f"{key!r} of {self.name} is a picture, not a column")

    def check_image(self, key: str, *, depth: bool) -> None:
        """DatasetError unless `key` is a picture of the kind asked for."""
        feature = self.feature(key)
        if not feature.is_picture:
            raise DatasetError(f"{key!r} of {self.name} is a column ({feature.dtype}), no picture")
        if feature.is_depth != depth:
            kinds = ("colour", "depth")
            raise DatasetError(
                f"{key!r} of {self.name} is {kinds[feature.is_depth]}, the card wants "
                f"{kinds[depth]}; depth features are called depth.<camera>"
            )

    def check_files(self, keys: Iterable[str], episodes: Iterable[int]) -> None:
        """DatasetError unless the columns of the episodes, and the videos `keys`, are there."""
        videos = [key for key in keys if self.feature(key).dtype == "video"]
        wanted = {
            path
            for place in (self.episodes[number] for number in episodes)
            for path in (place.data, *(place.clips[key].path for key in videos))
        }
        missing = sorted(path for path in wanted if not (self.folder / path).is_file())
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(wanted)} files of {self.folder} are missing, first "
                f"{self.folder / missing[0]}; fetch the dataset again"
            )

    def trajectory(
        self, episode: int, keys: tuple[str, ...], steps: range | None = None
    ) -> Mapping[str, Any]:
        """Columns of an episode, or of some steps of it; `task` gives the words of every step."""
        columns, part = self._episode(episode), slice(None)
        if steps is not None:
            part = slice(steps.start, steps.stop)
        return {key: columns[key][part] for key in keys}

    def value(self, key: str, episode: int, step: int) -> Any:
        """A column at one step."""
        return self._episode(episode)[key][step]

    def rgb(self, key: str, episode: int, step: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A picture; None where an image column is empty."""
        if self.feature(key).dtype == "video":
            return self._decoders.rgb(*self.moment(key, episode, step))
        data = self.image_bytes(key, episode, step)
        return decode_rgb(data, fast_dct=self.fast_dct) if data else None

    def stored_depth(self, key: str, episode: int, step: int) -> NDArray[Any] | None:
        """(H, W) depth in its stored unit; None where an image column is empty."""
        if self.feature(key).dtype == "video":
            return self._decoders.depth(*self.moment(key, episode, step))
        data = self.image_bytes(key, episode, step)
        return decode_depth(data, np.dtype(np.uint16)) if data else None

    def image_bytes(self, key: str, episode: int, step: int) -> bytes:
        """Encoded picture of an image column, b"" where it is empty."""
        place = self.episodes[episode]
        file = self._files.open(place.data)
        row = file.place(episode, place.length) + step
        entry = file.rows(row, 1, [key]).column(key)[0].as_py()
        if isinstance(entry, dict):
            if not entry.get("bytes") and entry.get("path"):
                return self._beside(entry["path"])
            entry = entry.get("bytes")
        return entry or b""

    def _beside(self, name: str) -> bytes:
        """A picture that lies as a file in the dataset's folder."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
            raise DatasetError(
                f"{self.name}: picture {name!r} lies neither in the parquet file nor in "
                f"{self.folder}; fetch the dataset again"
            )
        return path.read_bytes()

    def moment(self, key: str, episode: int, step: int) -> tuple[Path, float]:
        """Video file and seconds into it."""
        clip = self.episodes[episode].clips[key]
        seconds = float(self._episode(episode)["timestamp"][step])
        return self.folder / clip.path, clip.start + seconds

    def _episode(self, episode: int) -> dict[str, Any]:
        """All columns but pictures; the last few episodes are kept."""
        if not 0 <= episode < len(self.episodes):
            raise IndexError(f"episode {episode} of {self.name}: it has {len(self.episodes)}")
        found = self._cache.pop(episode, None)
        if found is None:
            found = self._read(episode)
            if len(self._cache) >= CACHED_EPISODES:
                self._cache.popitem(last=False)
        self._cache[episode] = found
        return found

    def _read(self, episode: int) -> dict[str, Any]:
        place = self.episodes[episode]
        file = self._files.open(place.data)
        start = file.place(episode, place.length)
        table = file.rows(start, place.length, list(self._columns))
        found = {
            key: to_numpy(table.column(key), self.info.features[key], f"{self.folder / place.data}")
            for key in self._columns
        }
        unknown = sorted(set(found["task_index"].tolist()) - set(self.tasks))
        if unknown:
            raise DatasetError(
                f"{self.name}: episode {episode} names tasks {unknown} without words"
            )
        words = [self.tasks[task] for task in found["task_index"].tolist()]
        found[TASK] = np.array(words, dtype=object)
        return found
