"""Colour jitter with the maths of the released training pipeline, which is TensorFlow's.

Pictures are float32 in [0, 1] and clipped after every adjustment. Brightness is added, contrast
turns about each channel's own mean, saturation and hue turn HSV. torchvision's jitter is another
one: its brightness multiplies, its contrast turns about the grey mean, its saturation blends with
grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

Pixels = UInt8[np.ndarray, "H W 3"] | Float32[np.ndarray, "H W 3"]
"""RGB as bytes, or as floats in [0, 1]."""


@dataclass(frozen=True)
class Jitter:
    """One draw of colour changes; the defaults change nothing.

    Attributes:
        brightness: added to every channel, which lies in [0, 1].
        contrast: factor about the mean of each channel.
        saturation: factor of HSV's S.
        hue: added to HSV's H, in turns.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


UNCHANGED = Jitter()


def recolour(pixels: Pixels, jitter: Jitter) -> UInt8[np.ndarray, "H W 3"]:
    """The picture after brightness, contrast, saturation and hue, in this order, as bytes."""
    if pixels.dtype == np.uint8:
        if jitter == UNCHANGED:
            return pixels
        planes = np.multiply(np.moveaxis(pixels, -1, 0), np.float32(1 / 255), dtype=np.float32)
    else:
        planes = np.moveaxis(pixels, -1, 0).astype(np.float32)
    planes = np.ascontiguousarray(planes)
    if jitter.brightness != 0:
        planes += np.float32(jitter.brightness)
        np.clip(planes, 0, 1, out=planes)
    if jitter.contrast != 1:
        mean = planes.mean(axis=(1, 2), keepdims=True)
        planes -= mean
        planes *= np.float32(jitter.contrast)
        planes += mean
        np.clip(planes, 0, 1, out=planes)
    if jitter.saturation != 1 or jitter.hue != 0:
        _turn(planes, jitter.saturation, jitter.hue)
    # Truncated after a scale of 255.5, as TensorFlow converts floats to bytes.
    planes *= np.float32(255.5)
    return np.ascontiguousarray(np.moveaxis(planes.astype(np.uint8), 0, -1))


def _turn(planes: Float32[np.ndarray, "3 H W"], saturation: float, hue: float) -> None:
    """Scale S and shift H of HSV, in place; H counts sixths of a turn from red, 0 to 6."""
    red, green, blue = planes
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    scale = np.float32(1) / np.where(spread > 0, spread, np.float32(1))
    sixths = np.where(
        value == red,
        (green - blue) * scale,
        np.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    sixths += np.float32(6 * hue)
    sixths += np.where(sixths < 0, np.float32(6), np.float32(0))
    sixths -= np.where(sixths >= 6, np.float32(6), np.float32(0))
    spread *= np.float32(saturation)
    np.minimum(spread, value, out=spread)  # S is at most 1
    lowest = value - spread
    np.subtract(np.abs(sixths - 3), 1, out=red)
    np.subtract(2, np.abs(sixths - 2), out=green)
    np.subtract(2, np.abs(sixths - 4), out=blue)
    np.clip(planes, 0, 1, out=planes)
    planes *= spread
    planes += lowest
