"""One video file of many episodes, written frame by frame.

Video encoders, opened without their side effects on the process.

A LeRobot dataset once more, its videos encoded anew with near key frames.

Everything else is copied as it is, and every frame keeps its time stamp, so that v2.1 stays v2.1
and v3.0 stays v3.0.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.converters.report import Report, mean_psnr, psnr
from spatialvla_ft.data.errors import DatasetError, refuse_within
from spatialvla_ft.data.lerobot.info import INFO
from spatialvla_ft.data.lerobot.store import LeRobotStore
from spatialvla_ft.data.lerobot.video import DEPTH_FORMAT, Decoder
from spatialvla_ft.data.sampler import evenly_spaced
from spatialvla_ft.files import copy_visible

_THREADS = Path("/proc/self/task")


def open_encoder(stream: Any) -> None:
    """Open the encoder of a PyAV stream whose size and pixel format are set.

    SVT-AV1 writes its settings to standard error unless told to keep to errors, and where it is
    run by root (in most containers) it makes its own threads and the one that opened it SCHED_FIFO
    99, for good. Threads that wait for each other by spinning, as OpenMP's do, can then keep every
    core from the one they wait for: the process stands still, and the machine with it.
    """
    os.environ.setdefault("SVT_LOG", "1")
    with scheduling_kept():
        stream.codec_context.open()


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """What runs in it may change neither this thread's scheduling nor start real-time threads."""
    if not (hasattr(os, "sched_setscheduler") and _THREADS.is_dir()):
        yield
        return
    me = threading.get_native_id()
    before = _threads()
    kept = _scheduling(me)
    try:
        yield
    finally:
        for thread in {me, *_threads() - before}:
            try:
                if _scheduling(thread) != kept:
                    policy, priority = kept
                    os.sched_setscheduler(thread, policy, os.sched_param(priority))
            except ProcessLookupError:
                continue  # it has ended


def _scheduling(thread: int) -> tuple[int, int]:
    """Policy and real-time priority."""
    return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority


def _threads() -> set[int]:
    return {int(entry.name) for entry in _THREADS.iterdir()}


@dataclass(frozen=True)
class Codec:
    """How frames are compressed.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        name: of the format, as `info.json` states it.
        pixels: pixel format in the file.
        options: of the encoder; a key frame every second frame makes random access cheap.
    """

    encoder: str
    name: str
    pixels: str
    options: dict[str, str]

    def with_gop(self, frames: int) -> Codec:
        """The same with a key frame every so many frames."""
        return replace(self, options={**self.options, "g": str(frames)})


CODECS = {
    "av1": Codec("libsvtav1", "av1", "yuv420p", {"g": "2", "crf": "30", "preset": "8"}),
    "h264": Codec("libx264", "h264", "yuv420p", {"g": "2", "crf": "23"}),
}
DEPTH_CODEC = Codec("ffv1", "ffv1", DEPTH_FORMAT, {"g": "1"})
"""Lossless, 16 bits, every frame by itself."""


class VideoWriter:
    """A video of a constant rate.

    Args:
        path: of the file.
        fps: frames per second.
        codec: how to compress.
    """

    def __init__(self, path: Path, fps: float, codec: Codec) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.frames = 0
        self._codec = codec
        self._rate = Fraction(fps).limit_denominator(1001)
        self._container = av.open(str(path), "w", format="mp4")
        self._stream: Any = None

    def write(self, frame: NDArray[Any]) -> None:
        """Append a picture, (H, W, 3) uint8, or depth, (H, W) uint16.

        Raises:
            DatasetError: it has another size than those before, or one the codec cannot hold.
        """
        height, width = frame.shape[:2]
        if self._stream is None:
            if self._codec.pixels == "yuv420p" and (height % 2 or width % 2):
                raise DatasetError(
                    f"{self._codec.name} needs an even width and height, got {width} x {height}; "
                    "keep the pictures as they are (images: keep)"
                )
            options = self._codec.options
            self._stream = self._container.add_stream(
                self._codec.encoder, rate=self._rate, options=options
            )
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = self._codec.pixels
            self._stream.codec_context.thread_count = 1
            open_encoder(self._stream)
        if (height, width) != (self._stream.height, self._stream.width):
            raise DatasetError(
                f"{self.path} has pictures of {self._stream.width} x {self._stream.height}, got "
                f"{width} x {height}; keep the pictures as they are (images: keep)"
            )
        picture = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(frame), format="rgb24" if frame.ndim == 3 else DEPTH_FORMAT
        )
        picture.pts, picture.time_base = self.frames, 1 / self._rate
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    @property
    def size(self) -> int:
        """Bytes on disk so far; an encoder may hold some back."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def seconds(self) -> float:
        """Where the next frame will stand."""
        return float(self.frames / self._rate)

    def close(self) -> None:
        """Finish the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


KEEP = "keep"
COMPARED = 24
"""Frames of a feature that are compared with what they were."""


def reencode(
    folder: Path,
    out: Path,
    *,
    gop: int,
    images: str = KEEP,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Copy a dataset; videos whose key frames are further apart than `gop` are encoded anew.

    Depth is lossless and each frame of it a key frame, so it is copied.

    Args:
        folder: dataset, v2.1 or v3.0.
        out: new folder.
        gop: frames from one key frame to the next.
        images: `keep` stays with each video's codec; or a codec for all.
        progress: called with (videos done, videos).

    Raises:
        DatasetError: `out` is in use or within the dataset, a codec that is not written here, or a
            damaged video.
    """
    if gop < 1:
        raise DatasetError(f"--gop: got {gop}, allowed are 1 or more frames")
    if images not in (KEEP, *CODECS):
        raise DatasetError(f"images: got {images!r}, allowed are {[KEEP, *CODECS]}")
    if out.exists() and any(out.iterdir()):
        raise DatasetError(f"{out} is not empty; remove it, or give another folder")
    refuse_within(out, folder)
    store = LeRobotStore(folder)
    keys = [k for k, f in store.info.features.items() if f.dtype == "video" and not f.is_depth]
    chosen: dict[str, dict[str, Codec | None]] = {
        key: {path: _codec(store, path, gop, images) for path in _paths(store, key)} for key in keys
    }
    anew = {path for found in chosen.values() for path, codec in found.items() if codec}
    copy_visible(folder, out, anew)
    done = 0
    for found in chosen.values():
        for path, codec in found.items():
            if codec is not None:
                _encode(folder / path, out / path, codec, store.info.fps)
            done += 1
            if progress is not None:
                progress(done, sum(map(len, chosen.values())))
    _describe(out, chosen)
    report = Report(episodes=len(store.episodes), steps=int(store.episode_lengths.sum()))
    again = LeRobotStore(out, name=store.name)
    for key, found in chosen.items():
        if any(found.values()):
            report.inexact[key] = _compare(store, again, key, found)
    return report


def _paths(store: LeRobotStore, key: str) -> list[str]:
    """Videos of a feature, each once, in order."""
    return store.episodes.clips[key].places.paths()


def _codec(store: LeRobotStore, path: str, gop: int, images: str) -> Codec | None:
    """What a video is to be encoded with, or None if it may stay as it is."""
    decoder = Decoder(store.folder / path, store.info.fps)
    interval, name = decoder.key_interval, decoder.format
    decoder.close()
    if images == KEEP and name not in CODECS:
        raise DatasetError(
            f"{store.folder / path} is {name}, which is not written here; name the codec of the "
            f"new videos: --images {' or '.join(CODECS)}"
        )
    wanted = name if images == KEEP else images
    if wanted == name and interval is not None and interval <= gop:
        return None
    return CODECS[wanted].with_gop(gop)


def _encode(source: Path, target: Path, codec: Codec, fps: float) -> None:
    """The frames of a video in another, at the same times.

    Raises:
        DatasetError: the video is damaged, or the times did not survive.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    times: list[float] = []
    try:
        with av.open(str(source)) as old, av.open(str(target), "w", format="mp4") as new:
            seen = old.streams.video[0]
            base: Any = seen.time_base
            rate = seen.average_rate or Fraction(fps).limit_denominator(1001)
            stream: Any = new.add_stream(codec.encoder, rate=rate, options=codec.options)
            stream.width, stream.height = seen.codec_context.width, seen.codec_context.height
            stream.pix_fmt = codec.pixels
            context = stream.codec_context
            context.time_base = base
            for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                setattr(context, name, getattr(seen.codec_context, name))
            open_encoder(stream)
            for frame in old.decode(seen):
                times.append(float((frame.pts or 0) * base))
                shown = (
                    frame
                    if frame.format.name == codec.pixels
                    else frame.reformat(format=codec.pixels)
                )
                shown.pts, shown.time_base = frame.pts, base
                shown.pict_type = 0  # the old video's key frames are not the new one's
                new.mux(stream.encode(shown))
            new.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise DatasetError(
            f"{source} could not be encoded as {codec.name} ({error}); it may be damaged, or have "
            "an odd width or height"
        ) from None
    with av.open(str(target)) as written:
        base = written.streams.video[0].time_base
        kept = sorted(float(p.pts * base) for p in written.demux(video=0) if p.pts is not None)
    if len(kept) != len(times) or np.abs(np.subtract(kept, times)).max() > 0.1 / fps:
        raise DatasetError(
            f"{source}: {len(times)} frames from {times[0]:.3f} to {times[-1]:.3f} s became "
            f"{len(kept)} from {kept[0]:.3f} to {kept[-1]:.3f} s; try another codec (--images)"
        )


def _describe(out: Path, chosen: dict[str, dict[str, Codec | None]]) -> None:
    """State the new codecs in `meta/info.json`."""
    path = out / INFO
    raw = json.loads(path.read_text(encoding="utf-8"))
    for key, found in chosen.items():
        codecs = [codec for codec in found.values() if codec is not None]
        if not codecs:
            continue
        node = raw["features"][key]
        place = node.setdefault("video_info" if "video_info" in node else "info", {})
        place |= {"video.codec": codecs[0].name, "video.pix_fmt": codecs[0].pixels}
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False), encoding="utf-8")


def _compare(old: LeRobotStore, new: LeRobotStore, key: str, found: dict[str, Codec | None]) -> str:
    """Measured loss and growth of the videos of a feature."""
    steps = [(e, t) for e, n in enumerate(old.episode_lengths.tolist()) for t in range(n)]
    values = []
    for i in evenly_spaced(len(steps), COMPARED):
        was, now = (store.rgb(key, *steps[i]) for store in (old, new))
        assert was is not None
        assert now is not None
        values.append(psnr(was, now))
    codec = next(codec for codec in found.values() if codec is not None)
    before, after = (sum((s.folder / path).stat().st_size for path in found) for s in (old, new))
    count = sum(codec is not None for codec in found.values())
    return (
        f"{count} of {len(found)} videos encoded anew as {codec.name}, a key frame every "
        f"{codec.options['g']}: PSNR to the video before {mean_psnr(values):.1f} dB, at worst "
        f"{min(values):.1f} dB, over {len(values)} pictures; "
        f"{before / 2**20:.1f} MiB became {after / 2**20:.1f}"
    )
