"""How fast random frames of a dataset's videos come, and a warning where training would wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.store import LeRobotStore
from spatialvla_ft.data.lerobot.video import Decoder

logger = logging.getLogger(__name__)

FEW_KEY_FRAMES = 16
"""Frames from one key frame to the next from which on random frames are timed."""
SLOW = 200.0
"""Random frames per second and process below which a warning is due. A step of a large model on one
GPU is assumed to take 20 to 60 samples/s, each of one or two cameras."""
TIMED = 6


@dataclass(frozen=True)
class Pace:
    """Of one video.

    Attributes:
        path: relative to the dataset.
        key_interval: frames from one key frame to the next.
        frames_per_second: random ones, read by one process; None where key frames are near, so that
            it was not measured.
    """

    path: str
    key_interval: float
    frames_per_second: float | None


def measure_pace(store: LeRobotStore, key: str) -> Pace | None:
    """The pace of the first video of a feature; None if the file lists no key frames.

    Raises:
        DatasetError: the video is missing or damaged.
    """
    clips, fps = store.episodes.clips[key], store.info.fps
    path = clips.path(_first(store, key))
    decoder = Decoder(store.folder / path, fps)
    interval = decoder.key_interval
    if interval is None or interval < FEW_KEY_FRAMES:
        decoder.close()
        return None if interval is None else Pace(path, interval, None)
    try:
        moments = [clips.starts[e] + step / fps for e, step in _some_steps(store, key)]
        begin = time.perf_counter()
        for seconds in moments:
            decoder.frame(seconds, "rgb24")
        return Pace(path, interval, len(moments) / (time.perf_counter() - begin))
    except DatasetError:
        return Pace(path, interval, None)  # frames elsewhere: reading the samples tells
    finally:
        decoder.close()


def _first(store: LeRobotStore, key: str) -> int:
    """The first episode with steps and a place."""
    usable = (store.episode_lengths > 0) & store.episodes.clips[key].places.known
    return int(np.argmax(usable))


def _some_steps(store: LeRobotStore, key: str) -> list[tuple[int, int]]:
    """(episode, step) of a few frames of the first video, anywhere in it."""
    places = store.episodes.clips[key].places
    inside = places.same_file(_first(store, key)) & (store.episode_lengths > 0)
    episodes = np.flatnonzero(inside).tolist()
    ends = np.cumsum(store.episode_lengths[episodes])
    frames = np.random.default_rng(0).integers(0, ends[-1], TIMED)
    which = np.searchsorted(ends, frames, side="right").tolist()
    starts = [0, *ends.tolist()]
    return [(episodes[i], int(f) - starts[i]) for i, f in zip(which, frames, strict=True)]


def warn_where_slow(store: LeRobotStore, keys: Iterable[str]) -> None:
    """Warn of the videos, by their feature, whose random frames come slowly; say the cure."""
    for key in keys:
        if store.feature(key).dtype != "video" or not store.episode_lengths.any():
            continue
        if not (store.folder / store.episodes.clips[key].path(_first(store, key))).is_file():
            continue  # opened for its columns alone; reading a picture tells
        pace = measure_pace(store, key)
        if pace is None or pace.frames_per_second is None or pace.frames_per_second >= SLOW:
            continue
        logger.warning(
            "%s: %s has a key frame only every %.0f frames, so a random frame takes %.0f ms here "
            "(%.0f frames/s per data worker) and training may wait for it. Write the videos anew "
            "with near key frames: spatialvla-ft data convert %s NEW_FOLDER --to lerobot --gop 2",
            store.name,
            pace.path,
            pace.key_interval,
            1000 / pace.frames_per_second,
            pace.frames_per_second,
            store.folder,
        )
