"""The frame at a time of a video, from a bounded number of decoders that stay open.

Every frame returned is checked by its own time stamp. A decoder goes forward where the next frame
asked for is near and otherwise seeks to the key frame before it. How near is learned: never
further than the distance between key frames that the file has shown so far.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError

OPEN_DECODERS = 16
DEPTH_FORMAT = "gray16le"


class Decoder:
    """One open video.

    Decoding takes one thread: the data loader's workers are the parallelism, and a codec's
    threads do not survive a fork.

    Args:
        path: video file.
        fps: frames per second of the dataset; a frame is the right one if its time stamp is less
            than a quarter of a frame from the time asked for.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except FileNotFoundError:
            raise DatasetError(f"{path} is missing; fetch the dataset again") from None
        except (av.FFmpegError, IndexError) as error:
            raise DatasetError(f"{path} is no video that can be read ({error})") from None
        self._stream.codec_context.thread_count = 1
        self._base = float(self._stream.time_base or 0)
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._current: av.VideoFrame | None = None
        self._key: float | None = None
        self._reach = 1

    @property
    def pixel_format(self) -> str | None:
        """How the file stores its pixels."""
        return self._stream.codec_context.pix_fmt

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def frame(self, seconds: float, pixels: str) -> NDArray[Any]:
        """The frame shown at `seconds`, as an array of the pixel format `pixels`.

        Raises:
            DatasetError: no frame has this time stamp.
        """
        ahead = self._distance(seconds)
        if ahead is None or ahead < 0 or ahead > self._reach:
            self._seek(seconds)
        elif ahead == 0:
            assert self._current is not None
            return _pixels(self._current, pixels)
        while (frame := self._advance()) is not None:
            offset = self._distance(seconds)
            assert offset is not None
            if offset == 0:
                return _pixels(frame, pixels)
            if offset < 0:
                break
        found = "the video ends" if self._current is None else f"{self._current.time:.6f} s"
        raise DatasetError(
            f"{self.path}: no frame at {seconds:.6f} s within {0.25 / self.fps:.6f} s; the nearest "
            f"after it: {found}. The video does not fit the time stamps of its episodes"
        )

    def _distance(self, seconds: float) -> int | None:
        """Frames from the current one to the one asked for; 0 only if it is that one."""
        if self._current is None:
            return None
        frames = (seconds - float(self._current.time)) * self.fps
        if abs(frames) < 0.25:
            return 0
        return max(1, round(frames)) if frames > 0 else -1

    def _seek(self, seconds: float) -> None:
        """Go to the last key frame that is not after `seconds`, looking further back if needed."""
        # A little after the time asked for, so that a key frame at that time is found itself.
        back = -0.25 / self.fps
        while True:
            target = max(0, round((seconds - back) / self._base))
            first = self._stream.start_time or 0
            self._container.seek(max(target, first), stream=self._stream, backward=True)
            self._frames = self._container.decode(self._stream)
            self._current, self._key = None, None
            frame = next(self._frames, None)
            late = frame is not None and float(frame.time) > seconds + 0.25 / self.fps
            if not late or target <= first:
                break
            back = max(4 * back, 1 / self.fps)
        # The key frame itself is the next to be handed out.
        self._frames = _again(frame, self._frames)

    def _advance(self) -> av.VideoFrame | None:
        try:
            frame = next(self._frames, None)
        except av.FFmpegError as error:
            raise DatasetError(f"{self.path} is damaged ({error}); fetch it again") from None
        self._current = frame
        if frame is None:
            return None
        if frame.key_frame:
            self._key = float(frame.time)
        if self._key is not None:
            self._reach = max(self._reach, round((float(frame.time) - self._key) * self.fps))
        return frame


def _again(first: av.VideoFrame | None, rest: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    if first is not None:
        yield first
    yield from rest


def _pixels(frame: av.VideoFrame, pixels: str) -> NDArray[Any]:
    array: NDArray[Any] = frame.to_ndarray(format=pixels)
    return array


class Decoders:
    """Open decoders by path; the least recently used is closed when there are too many."""

    def __init__(self, fps: float, limit: int = OPEN_DECODERS) -> None:
        self.fps = fps
        self.limit = limit
        self._pid = -1
        self._open: OrderedDict[Path, Decoder] = OrderedDict()
        self._inherited: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"fps": self.fps, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def get(self, path: Path) -> Decoder:
        """The decoder of a file, opened if need be."""
        if self._pid != os.getpid():
            # A fork shares the parent's file positions, and closing them here could hang.
            self._inherited.append(self._open)
            self._open, self._pid = OrderedDict(), os.getpid()
        found = self._open.pop(path, None)
        if found is None:
            found = Decoder(path, self.fps)
            if len(self._open) >= self.limit:
                self._open.popitem(last=False)[1].close()
        self._open[path] = found
        return found

    def rgb(self, path: Path, seconds: float) -> NDArray[np.uint8]:
        """(H, W, 3) picture at a time."""
        return self.get(path).frame(seconds, "rgb24")

    def depth(self, path: Path, seconds: float) -> NDArray[np.uint16]:
        """(H, W) stored depth at a time.

        Raises:
            DatasetError: the video is not 16-bit grey, so that depth would be rounded.
        """
        decoder = self.get(path)
        stored = decoder.pixel_format
        if stored != DEPTH_FORMAT:
            raise DatasetError(
                f"{path} is {stored}; depth is read from lossless {DEPTH_FORMAT} (FFV1, metres x "
                "10000). Eight or twelve bits cannot hold it: write the depth again, or leave it "
                "out of the card"
            )
        return decoder.frame(seconds, DEPTH_FORMAT)
