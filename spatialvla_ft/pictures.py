"""What counts as a picture: the one judgement for every door through which pictures come in.

Whatever form a picture has, it becomes the RGB bytes that it shows, or a ValueError. The type of
its numbers decides, and their range must agree (docs/decisions/0017): one stream of pictures is
then read in one way, whatever its darkest frame is. Free of torch, though tensors are understood.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

CHANNELS = (1, 3, 4)
"""Of grey, RGB, and RGB with alpha."""
ROUNDING = 1e-3
"""How far outside [0, 1] floats are taken for rounding of what lies inside."""
NUMBERS = ("I", "F")
"""Modes of PIL, and beginnings of them, whose pixels are numbers without a white of their own."""


def rgb_bytes(picture: Any, name: str = "the picture") -> UInt8[np.ndarray, "H W 3"]:
    """The RGB bytes that a picture shows; grey is repeated, alpha is dropped.

    Args:
        picture: a PIL image of any mode; or a NumPy array, or a torch tensor on any device, with
            the channels first, last or (grey) absent: uint8; float in [0, 1], rounded to the
            nearest level; int32 or int64 (and unsigned) in 0..255.
        name: what the picture is, for errors.

    Raises:
        ValueError: it can be read in more than one way, or in none. Type, shape, range and cure
            are named. Refused are floats beyond [0, 1] (0..255, or normalised), NaN, pictures of
            nothing but 0 and 1 that are not uint8, 16 bits, masks, paths, and shapes whose
            channels may be first or last.
    """
    if isinstance(picture, Image.Image):
        try:
            if not picture.mode.startswith(NUMBERS):
                clear = picture.convert("RGBA") if "transparency" in picture.info else picture
                return np.asarray(clear.convert("RGB"))
            picture = np.asarray(picture)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} is a PIL image of mode {picture.mode}, {picture.width} x "
                f"{picture.height}, that cannot be read as RGB: {error}"
            ) from None
    given = as_array(picture, name)
    values = _channels_last(given, name)
    levels = values if values.dtype == np.uint8 else _levels(values, name, given.shape)
    if levels.shape[-1] == 1:
        levels = np.repeat(levels, 3, axis=2)
    return np.ascontiguousarray(levels)


def as_array(value: Any, name: str) -> NDArray[Any]:
    """The NumPy array of an array, a torch tensor on any device or of any type, or a PIL image.

    Raises:
        ValueError: it is none of these, e.g. a path or a file's bytes; says how to open it.
    """
    if isinstance(value, (str, os.PathLike)):
        raise ValueError(
            f"{name} is a path, {os.fspath(value)!r}: open it first, with PIL.Image.open(path)"
        )
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError(
            f"{name} is {len(value)} bytes of a file: decode them first, with "
            "PIL.Image.open(io.BytesIO(data))"
        )
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            value = value.detach().cpu()
            return np.asarray(value.float() if str(value.dtype) == "torch.bfloat16" else value)
        if isinstance(value, Image.Image) or hasattr(value, "__array__"):
            return np.asarray(value)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name} is a {kind} that makes no NumPy array: {error}") from None
    raise ValueError(f"{name} is a {kind}: pass a PIL image, a NumPy array or a torch tensor")


def described(values: NDArray[Any], shape: tuple[int, ...] | None = None) -> str:
    """Type, shape (of what it was made from, where that is given) and range, for errors."""
    text = f"{values.dtype} {values.shape if shape is None else shape}"
    if values.size == 0 or values.dtype.kind not in "buif":
        return text
    unknown = int(np.isnan(values).sum())
    finite = values[~np.isnan(values)] if unknown else values
    text += f" of {finite.min():g} .. {finite.max():g}" if finite.size else ""
    return text + (f" with {unknown} NaN" if unknown else "")


def _channels_last(values: NDArray[Any], name: str) -> NDArray[Any]:
    """(H, W, 1 or 3) of whatever layout, without alpha."""
    if values.ndim == 2 and values.size:
        return values[..., None]
    last = values.ndim == 3 and values.shape[2] in CHANNELS
    first = values.ndim == 3 and values.shape[0] in CHANNELS
    if values.size == 0 or not (first or last):
        raise ValueError(
            f"{name} is {described(values)}: a picture is (H, W, C), (C, H, W) or (H, W) with C "
            "one of 1, 3, 4"
        )
    if first and last:
        raise ValueError(
            f"{name} is {described(values)}, whose channels may be the first axis or the last: "
            "pass a PIL image, e.g. PIL.Image.fromarray(array) of (H, W, 3) bytes"
        )
    planes = values if last else np.moveaxis(values, 0, -1)
    return planes[..., :3]


def _levels(values: NDArray[Any], name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bytes of a picture whose numbers are of another type."""
    refusal = f"{name} is {described(values, shape)}"
    if values.dtype.kind == "f":
        return _of_unit_range(values, refusal)
    if values.dtype.kind == "b":
        raise ValueError(
            f"{refusal}: a mask is no picture; pass picture.astype(np.uint8) * 255 if True is white"
        )
    if values.dtype.kind not in "ui":
        raise ValueError(f"{refusal}: a picture is uint8, or float in [0, 1]")
    if values.dtype.itemsize < 4:
        raise ValueError(
            f"{refusal}, which does not say what white is: pass uint8 (picture.astype(np.uint8) if "
            "these are 0..255), or float in [0, 1] (picture / 65535, for 12 bits / 4095)"
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise ValueError(
            f"{refusal}: whole numbers are read as 0..255; pass float in [0, 1] (picture / 65535 "
            "for 16 bits, / 4095 for 12)"
        )
    if high == 1:
        raise _either_black_or_white(refusal)
    return values.astype(np.uint8)


def _of_unit_range(values: NDArray[Any], refusal: str) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{refusal}: every pixel must be a finite number in [0, 1]")
    if low < -ROUNDING:
        raise ValueError(
            f"{refusal}: floats are read as [0, 1]. It looks normalised already: pass the picture "
            "as it was before, (picture * std + mean) or (picture + 1) / 2 for [-1, 1]; what left "
            "[0, 1] by interpolation wants picture.clip(0, 1)"
        )
    if high > 1 + ROUNDING:
        raise ValueError(
            f"{refusal}: floats are read as [0, 1]. Pass picture / 255 or picture.astype(np.uint8) "
            "if these are 0..255; picture.clip(0, 1) if interpolation left [0, 1]"
        )
    if high == 1 and np.isin(values, (0, 1)).all():
        raise _either_black_or_white(refusal)
    if 0 < high < 1.5 / 255:
        raise ValueError(
            f"{refusal}: floats are read as [0, 1], where this is all but black. If it was divided "
            "by 255 twice, divide once; if it is this dark, pass np.rint(picture * "
            "255).astype(np.uint8)"
        )
    return np.rint(np.clip(values.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def _either_black_or_white(refusal: str) -> ValueError:
    return ValueError(
        f"{refusal}, of nothing but 0 and 1: white and black, or the two darkest levels of 255. "
        "Pass uint8: (picture * 255).astype(np.uint8), or picture.astype(np.uint8)"
    )
