"""Frames of RH20T's videos, and how they are stored again.

A depth video is grey and twice as high as the picture: the upper half holds the low byte of each
pixel, the lower half the high byte.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8, UInt16
from PIL import Image

from spatialvla_ft.data.rh20t.layout import SkipSceneError

DEPTH_SCALE = 1e-4
"""Metres per unit of a written depth image."""
JPEG_QUALITY = 95


def decode_frames(
    path: Path, wanted: Int64[np.ndarray, " n"]
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames with the numbers `wanted`, which ascend and may repeat, as RGB.

    The video is read once from its start: seeking is inexact in files whose frame times vary.
    """
    if not path.is_file():
        raise SkipSceneError(f"no {path.name}", path.parent.name)
    remaining = list(wanted)
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if not remaining:
                    return
                if number == remaining[0]:
                    picture = frame.to_ndarray(format="rgb24")
                    while remaining and remaining[0] == number:
                        remaining.pop(0)
                        yield picture
    except av.FFmpegError as error:
        raise SkipSceneError("a video cannot be read", f"{path}: {error}") from None
    if remaining:
        raise SkipSceneError(
            "a video is shorter than its timestamps", f"{path} lacks frame {remaining[0]}"
        )


def unpack_depth(frame: UInt8[np.ndarray, "H2 W 3"]) -> UInt16[np.ndarray, "H W"]:
    """Depth in the sensor's units from a frame of a depth video; 0 is unknown."""
    if frame.shape[0] % 2 or int(np.ptp(frame.astype(np.int16), axis=-1).max()) > 0:
        raise SkipSceneError(
            "a depth video is not packed depth",
            f"its frames are {frame.shape[1]} x {frame.shape[0]}; expected grey, twice the height",
        )
    low, high = np.split(frame[..., 0].astype(np.uint16), 2)
    return low + (high << 8)


def sensor_unit(serial: str) -> float:
    """Metres per unit of the sensor: an L515, whose serial starts with a letter, counts 0.25 mm."""
    return 0.00025 if serial[:1].isalpha() else 0.001


def encode_depth(depth: UInt16[np.ndarray, "H W"], unit: float) -> bytes:
    """16-bit PNG in DEPTH_SCALE; what is too far for 16 bits (6.55 m) becomes unknown."""
    scaled = np.rint(depth * (unit / DEPTH_SCALE))
    scaled[scaled > np.iinfo(np.uint16).max] = 0
    buffer = io.BytesIO()
    Image.fromarray(scaled.astype(np.uint16)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def encode_colour(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """JPEG without loss of colour resolution."""
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture), quality=JPEG_QUALITY, colorsubsampling="444"
    )
    return encoded
