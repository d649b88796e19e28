"""One video file of many episodes, written frame by frame.

Video encoders, opened without their side effects on the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.video import DEPTH_FORMAT

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
