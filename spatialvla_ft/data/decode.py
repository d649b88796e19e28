"""Encoded images to arrays."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from PIL import Image

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.geometry.depth_maps import usable
from spatialvla_ft.pictures import described

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
FORMATS = {
    _PNG: "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"RIFF": "WEBP", b"BM": "BMP",
}  # fmt: skip
"""First bytes of files to their format, beside JPEG."""
_CONVERTED = ("P", "PA", "CMYK", "YCbCr", "LAB")


def is_common(data: bytes) -> bool:
    """Whether a picture is a JPEG or PNG, which everything reads."""
    return data.startswith((_JPEG, _PNG))


def decode_rgb(data: bytes, *, fast_dct: bool = True) -> UInt8[np.ndarray, "H W 3"]:
    """A JPEG, PNG, TIFF, WebP or BMP as RGB; grey is repeated, alpha is dropped.

    Colour of 16 bits per channel keeps its upper 8; grey of 16 bits is refused, as it mostly is
    depth.

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
    pixels = _decode(data)
    if pixels.dtype != np.uint8:
        raise DatasetError(
            f"a picture of {described(pixels)}; 8 bits per channel are read: convert it, e.g. by "
            "(picture / 65535 * 255).round().astype(np.uint8) where 65535 is white, or name it "
            "under depth: if it is depth"
        )
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (1, 2):
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def decode_depth(data: bytes, dtype: np.dtype[Any] | None) -> NDArray[Any]:
    """(H, W) stored depth in its own unit.

    Args:
        data: an encoded image of one channel: integers, or the float32 of a TIFF.
        dtype: float32 where it is kept as the 4 bytes of a PNG's pixel; else what the file has.

    Raises:
        DatasetError: the file is damaged, of another format, or has several channels or pages.
    """
    if data.startswith(_JPEG):
        try:
            values: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="GRAY", fastdct=True)
        except ValueError as error:
            raise DatasetError(f"damaged JPEG of {len(data)} bytes: {error}") from None
    else:
        values = _decode(data)
    if dtype == np.float32 and values.dtype != np.float32:
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


def _decode(data: bytes) -> NDArray[Any]:
    """Pixels of anything but a JPEG, in the type that they are stored in."""
    kind = next((name for start, name in FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise DatasetError(
            f"neither JPEG nor PNG: {len(data)} bytes that start with {data[:4]!r}; TIFF, WebP and "
            "BMP are read too"
        )
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1:
                raise DatasetError(f"a {kind} of {pages} pictures; a step has one")
            pixels = np.asarray(image.convert("RGB") if image.mode in _CONVERTED else image)
    except DatasetError:
        raise
    except Exception as error:  # of a damaged file, Pillow raises whatever its parser ran into
        raise DatasetError(f"damaged {kind} of {len(data)} bytes: {error}") from None
    # TIFF may be big-endian; bool is black and white.
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
