"""What can be wrong with a whole LeRobot dataset, found without decoding a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
from jaxtyping import Int

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.data_files import to_floats, to_numpy
from spatialvla_ft.data.lerobot.rows import Rows
from spatialvla_ft.data.lerobot.store import CLOCKS, TASK_INDEX, LeRobotStore
from spatialvla_ft.data.lerobot.tasks import task_troubles
from spatialvla_ft.data.lerobot.troubles import Trouble, joined
from spatialvla_ft.data.stats.kept import kept_json


def videos_of(store: LeRobotStore, keys: Iterable[str]) -> list[str]:
    """Those of these pictures that are videos, each once."""
    return [key for key in dict.fromkeys(keys) if store.feature(key).dtype == "video"]


def check_files(store: LeRobotStore, keys: Iterable[str], episodes: Int[np.ndarray, " m"]) -> None:
    """DatasetError unless the rows of the episodes, and the videos `keys`, are there."""
    chosen = np.asarray(episodes, np.int64)
    named = set(store.episodes.data.paths(chosen))
    wanted = set(named)
    for key in videos_of(store, keys):
        wanted.update(store.episodes.clips[key].places.paths(chosen))
    missing = sorted(path for path in wanted if not (store.folder / path).is_file())
    if missing and set(missing) <= named:
        # A table that names wrong files does no harm where others hold the rows.
        for episode in chosen[store.episode_lengths[chosen] > 0].tolist():
            store.data_path(episode)
        return
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(wanted)} files of {store.folder} are missing, first "
            f"{store.folder / missing[0]}; fetch the dataset again"
        )


def clip_troubles(store: LeRobotStore, keys: Iterable[str]) -> list[Trouble]:
    """What is wrong with the places of these pictures in their videos, for all episodes."""
    found = []
    for key in videos_of(store, keys):
        clips = store.episodes.clips[key]
        found += clips.troubles(store.episode_lengths, store.info.fps, shared=store.video.shared)
    return found


def row_troubles(store: LeRobotStore, keys: Iterable[str], *, words: bool) -> list[Trouble]:
    """What is wrong with the stamps, the frame numbers and the tasks of all rows.

    Two or three small columns are read of every data file, once: what was found is kept.

    Args:
        store: the dataset.
        keys: pictures that are to be read; their clips must be right.
        words: whether the words of the tasks are to be read.
    """
    videos = videos_of(store, keys)
    if not videos and not words:
        return []
    digest = hashlib.sha256(store.content_hash.encode())
    told = [store.info.fps, store.video.model_dump(), videos, words]
    digest.update(json.dumps(told).encode())
    for key in videos:
        digest.update(store.owned_frames(key).tobytes())
    for path in sorted((store.folder / "meta").rglob("*")):
        state = path.stat()
        digest.update(json.dumps([str(path.name), state.st_size, state.st_mtime_ns]).encode())
    kept = kept_json(
        store.statistics_dir,
        "rows",
        digest.hexdigest()[:24],
        lambda: [asdict(trouble) for trouble in _read_rows(store, videos, words)],
    )
    found = [Trouble(**trouble) for trouble in kept]
    if not any(trouble.serious for trouble in found):
        store.checked_rows.update(videos)
    return found


def _read_rows(store: LeRobotStore, videos: list[str], words: bool) -> list[Trouble]:
    owned = {key: store.owned_frames(key) for key in videos}
    by_file: dict[str, list[int]] = {}
    for episode in np.flatnonzero(store.episode_lengths > 0).tolist():
        by_file.setdefault(store.data_path(episode), []).append(episode)
    found: list[Trouble] = []
    for path, episodes in by_file.items():
        file = store.files.open(path)
        lengths = store.episode_lengths[episodes]
        owners = np.repeat(np.array(episodes, np.int64), lengths)
        steps = np.concatenate([np.arange(length) for length in lengths])
        take = np.repeat([file.first(episode) for episode in episodes], lengths) + steps
        if videos:
            table = file.rows(0, file.num_rows, [key for key in CLOCKS if file.has(key)])
            clocks = [
                to_floats(table.column(key), key, path)[take] if file.has(key) else None
                for key in CLOCKS
            ]
            rows = Rows(owners, steps, *clocks)
            found += rows.troubles(store.info.fps, store.video.time, owned)
        if words:
            column = file.rows(0, file.num_rows, [TASK_INDEX]).column(0)
            tasks = to_numpy(column, store.kind(TASK_INDEX), str(file.path), unit="row")
            found += task_troubles(tasks[take], owners, steps, store.tasks, store.episodes)
    return joined(found)
