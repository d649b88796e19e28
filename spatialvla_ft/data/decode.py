"""Encoded images to arrays."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.depth.usable import usable

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


def decode_rgb(data: bytes, *, fast_dct: bool = True) -> UInt8[np.ndarray, "H W 3"]:
    """A JPEG or PNG as RGB; grey is repeated, alpha is dropped.

    Args:
        data: the encoded image; its first bytes tell the format.
        fast_dct: the less exact inverse DCT of libjpeg, which TensorFlow uses too, so that the
            released checkpoints see the pixels they were trained on.
    """
    if data.startswith(_JPEG):
        try:
            rgb: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=fast_dct)
        except ValueError as error:
            raise DatasetError(f"damaged JPEG of {len(data)} bytes: {error}") from None
        return rgb
    pixels = _decode_png(data)
    if pixels.dtype != np.uint8:
        raise DatasetError(f"an RGB image of {pixels.dtype}; 8 bits per channel are supported")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (1, 2):
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def decode_depth(data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(H, W) stored depth in its own unit: integers, or float32 kept as the bytes of a PNG."""
    if data.startswith(_JPEG):
        values: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="GRAY", fastdct=True)
    else:
        values = _decode_png(data)
    if dtype == np.float32:
        if values.ndim != 3 or values.shape[2] != 4:
            raise DatasetError(f"float32 depth is a PNG of 4 bytes a pixel, got {values.shape}")
        values = np.ascontiguousarray(values).view(np.float32)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2:
        raise DatasetError(f"depth has one channel, got {values.shape}; it may be a coloured view")
    return values


def to_metres(values: NDArray[Any], scale: float) -> Float32[np.ndarray, "H W"]:
    """Stored depth times `scale`; 0 where it is unknown (0, negative, not finite)."""
    metres = values.astype(np.float32) * np.float32(scale)
    known = usable(metres)
    return metres if known.all() else np.where(known, metres, np.float32(0))


def _decode_png(data: bytes) -> NDArray[Any]:
    if not data.startswith(_PNG):
        raise DatasetError(f"neither JPEG nor PNG: {len(data)} bytes that start with {data[:4]!r}")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DatasetError(f"damaged PNG of {len(data)} bytes: {error}") from None
