"""The frame at a time of a video, from a bounded number of decoders that stay open.

Every frame returned is checked by its own time stamp. Random access costs what the codec makes it
cost: the key frame before the frame asked for, and all that lies between. So a decoder

- goes forward instead of seeking where that is less to decode, as the file's own list of key frames
  tells: reading a batch in the order of the file shares the way;
- asks for the frame as soon as its packet is in, where key frames are near: H.264 holds frames back
  to put them in order, and would decode the next key frame first;
- leaves out frames on the way that no other frame refers to, where the codec can tell.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError

OPEN_DECODERS = 16
"""Of a process. One of 640 x 480 takes 10 to 15 MiB."""
DEPTH_FORMAT = "gray16le"
NEAR = 8
"""Frames between key frames up to which finding one frame matters more than going on from it."""

SKIPPING = ("h264", "hevc")
"""Decoders that may be told packet by packet to leave out what no frame refers to; dav1d, once
told, never shows such a frame again."""


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
            reason = getattr(error, "strerror", None) or error
            raise DatasetError(
                f"{path} is damaged or no video ({reason}); fetch it again"
            ) from None
        self._context = self._stream.codec_context
        self._context.thread_count = 1
        self._converter = VideoReformatter()
        self._base = float(self._stream.time_base or 0)
        self._tolerance = 0.25 / fps
        self._keys, self.key_interval = self._key_frames()
        self._packets: Iterator[av.Packet[Any]] = iter(())
        self._ready: deque[av.VideoFrame] = deque()
        self._drained = True
        self._current: av.VideoFrame | None = None

    def _key_frames(self) -> tuple[list[float], float | None]:
        """(seconds of every key frame, frames from one to the next), None if the file has no list.

        The list is in the order of decoding, so the seconds may be off by a few frames: they
        decide what to decode and never what is returned.
        """
        entries = list(self._stream.index_entries)
        keys = [entry.timestamp for entry in entries if entry.is_keyframe]
        if not keys:
            return [], None
        shift = (self._stream.start_time or 0) - keys[0]
        return [(key + shift) * self._base for key in keys], len(entries) / len(keys)

    @property
    def pixel_format(self) -> str | None:
        """How the file stores its pixels."""
        return self._context.pix_fmt

    @property
    def format(self) -> str:
        """FFmpeg's name of the format, e.g. h264 or av1."""
        return self._context.codec.canonical_name

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def frame(self, seconds: float, pixels: str) -> NDArray[Any]:
        """The frame shown at `seconds`, as an array of the pixel format `pixels`.

        Raises:
            DatasetError: no frame has this time stamp, or the file is damaged.
        """
        # A converter of its own per frame would cost more than decoding it: it starts threads.
        shown = self._converter.reformat(self._find(seconds), format=pixels, threads=1)
        array: NDArray[Any] = shown.to_ndarray()
        return array

    def _time(self, frame: av.VideoFrame) -> float:
        """Seconds; a frame that was asked for before its turn does not know its time base."""
        return (frame.pts or 0) * self._base

    def _find(self, seconds: float) -> av.VideoFrame:
        ahead = None if self._current is None else (seconds - self._time(self._current)) * self.fps
        if ahead is not None and abs(ahead) < 0.25:
            assert self._current is not None
            return self._current
        # One frame on from the last: it is read in order, so the next will be wanted too.
        in_order = ahead is not None and 0 < ahead < 1.5
        try:
            if not self._goes_forward(seconds, ahead):
                self._seek(seconds)
            hurry = not in_order and self.key_interval is not None and self.key_interval <= NEAR
            while (frame := self._advance(seconds, hurry=hurry)) is not None:
                offset = self._time(frame) - seconds
                if abs(offset) < self._tolerance:
                    return frame
                if offset > 0:
                    break
        except av.FFmpegError as error:
            self._drained, self._current = True, None
            raise DatasetError(f"{self.path} is damaged ({error}); fetch it again") from None
        found = "the video ends" if frame is None else f"{self._time(frame):.6f} s"
        raise DatasetError(
            f"{self.path}: no frame at {seconds:.6f} s within {self._tolerance:.6f} s; the nearest "
            f"after it: {found}. The video does not fit the time stamps of its episodes"
        )

    def _goes_forward(self, seconds: float, ahead: float | None) -> bool:
        """Whether going on from the current frame is less to decode than seeking."""
        if ahead is None or ahead < 0:
            return False
        if self._drained:
            return self._is_ready(seconds)
        if not self._keys:
            return ahead <= NEAR
        key = self._keys[max(0, bisect_right(self._keys, seconds + self._tolerance) - 1)]
        return ahead <= (seconds - key) * self.fps + 1.25

    def _is_ready(self, seconds: float) -> bool:
        """Whether the frame is decoded and only waits for its turn."""
        return any(abs(self._time(frame) - seconds) < self._tolerance for frame in self._ready)

    def _seek(self, seconds: float) -> None:
        """Go to the last key frame that is not after `seconds`, looking further back if needed."""
        # A little after the time asked for, so that a key frame at that time is found itself.
        back = -self._tolerance
        first = self._stream.start_time or 0
        while True:
            target = max(first, round((seconds - back) / self._base))
            self._container.seek(target, stream=self._stream, backward=True)
            self._packets = self._container.demux(self._stream)
            packet = next(self._packets)
            # Files are searched by the time of decoding: the key frame found may be shown later.
            late = packet.pts is not None and packet.pts * self._base > seconds + self._tolerance
            if not late or target <= first:
                break
            back = max(4 * back, 1 / self.fps)
        self._packets = chain([packet], self._packets)
        self._ready.clear()
        self._drained, self._current = False, None

    def _advance(self, seconds: float, *, hurry: bool) -> av.VideoFrame | None:
        """The next frame on the way to `seconds`, or None at the end of the video.

        Args:
            seconds: where to.
            hurry: give out all frames once the packet of that time is in; going on from there
                takes a seek.
        """
        while not self._ready and not self._drained:
            packet = next(self._packets, None)
            ahead = np.inf
            if packet is not None and packet.pts is not None:
                ahead = packet.pts * self._base - seconds
            if self._context.codec.name in SKIPPING:
                # Only frames before the one asked for: those after it may be asked for next.
                self._context.skip_frame = "NONREF" if ahead < -self._tolerance else "DEFAULT"
            self._ready.extend(self._context.decode(packet))
            if packet is None or packet.size == 0:
                self._drained = True
            elif hurry and abs(ahead) < self._tolerance and not self._is_ready(seconds):
                self._ready.extend(self._context.decode(None))
                self._drained = True
        self._current = self._ready.popleft() if self._ready else None
        return self._current


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
