"""From a recorded picture to the model's size: two ways, with K and depth along either.

- `parity`: the pixels of the released training pipeline. Lanczos to the square, then the crop out
  of that square by bilinear interpolation between the centres of its first and last pixels, which
  is what TensorFlow's crop_and_resize does.
- `fast`: whole pixels are cut out of the recorded picture and resized once, by torch's bicubic
  filter on bytes, which is torchvision's too. It is the bicubic filter of the processor but for a
  level in 0.5 % of the values of a picture of noise, so that training and inference see the same
  kernel. The default.

Each way says which part of the picture the result really shows; K and depth are computed from that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from spatialvla_ft.data.colour import UNCHANGED, Jitter, Pixels, recolour
from spatialvla_ft.data.sample import Sample
from spatialvla_ft.data.transforms import Seen, crop_intrinsics, resize_rgb, scale_intrinsics
from spatialvla_ft.pictures import rgb_bytes

ImagePath = Literal["parity", "fast"]


@dataclass(frozen=True)
class Region:
    """Part of a picture, from edge to edge, as shares of its width and height."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0


WHOLE = Region()


def random_region(generator: np.random.Generator, area: float) -> Region:
    """A region of the picture's own shape and `area` of its surface, anywhere in it."""
    if not 0 < area <= 1:
        raise ValueError(f"area must be in (0, 1], got {area}")
    if area == 1:
        return WHOLE
    side = area**0.5
    left, top = generator.uniform(0, 1 - side, 2).tolist()
    return Region(left, top, side, side)


def fit(
    image: UInt8[np.ndarray, "H W 3"], size: int, path: ImagePath, region: Region = WHOLE
) -> tuple[Pixels, Region]:
    """A region of a picture as a square of `size` pixels, and the region that it really shows.

    Raises:
        ValueError: another path, or a region that leaves the picture.
    """
    inside = min(region.left, region.top) >= 0 and min(region.width, region.height) > 0
    if not inside or max(region.left + region.width, region.top + region.height) > 1 + 1e-9:
        raise ValueError(f"{region} leaves the picture; its edges must lie in 0..1")
    if path == "parity":
        return _parity(image, size, region)
    if path == "fast":
        return _fast(image, size, region)
    raise ValueError(f"image path {path!r} is not known; use one of {get_args(ImagePath)}")


def fit_step(
    step: Seen,
    size: int,
    path: ImagePath,
    regions: Mapping[str, Region] | None = None,
    jitters: Mapping[str, Jitter] | None = None,
) -> Seen:
    """Every picture of a step as a square, K and depth following; past steps in the same way.

    Args:
        step: a sample, or a past step of one.
        size: pixels of the square.
        path: see the module.
        regions: what is shown, by slot; the whole picture where none is given.
        jitters: colour changes by slot.

    Raises:
        ValueError: a picture that can be read in more than one way, see `rgb_bytes`.
    """
    regions, jitters = regions or {}, jitters or {}
    images: dict[str, np.ndarray] = {}
    intrinsics = dict(step.intrinsics)
    depth = None if step.depth is None else dict(step.depth)
    for slot, given in step.images.items():
        image = rgb_bytes(given, f"the picture of camera {slot!r}")
        pixels, shown = fit(image, size, path, regions.get(slot, WHOLE))
        images[slot] = recolour(pixels, jitters.get(slot, UNCHANGED))
        if slot in intrinsics:
            height, width = image.shape[:2]
            intrinsics[slot] = fitted_intrinsics(intrinsics[slot], width, height, shown, size)
        if depth is not None and slot in depth:
            depth[slot] = fitted_depth(depth[slot], shown, size)
    changed: dict[str, Any] = {"images": images, "depth": depth, "intrinsics": intrinsics}
    if isinstance(step, Sample) and step.history:
        changed["history"] = tuple(
            fit_step(past, size, path, regions, jitters) for past in step.history
        )
    return dataclasses.replace(step, **changed)


def fitted_intrinsics(
    K: Float64[np.ndarray, "3 3"], width: int, height: int, shown: Region, size: int
) -> Float64[np.ndarray, "3 3"]:
    """K of the square that shows a region of a `width` x `height` picture."""
    cut = K if shown == WHOLE else crop_intrinsics(K, shown.left * width, shown.top * height)
    return scale_intrinsics(cut, size / (shown.width * width), size / (shown.height * height))


def fitted_depth(
    depth: Float32[np.ndarray, "H W"], shown: Region, size: int
) -> Float32[np.ndarray, "S S"]:
    """The stored depth under the centre of each pixel of the square; nothing is averaged."""
    height, width = depth.shape
    if shown == WHOLE and (height, width) == (size, size):
        return depth
    centres = (np.arange(size) + 0.5) / size
    rows = _stored(shown.top + centres * shown.height, height)
    columns = _stored(shown.left + centres * shown.width, width)
    return np.ascontiguousarray(depth[rows[:, None], columns])


def _stored(shares: Float64[np.ndarray, " S"], count: int) -> np.ndarray:
    # A centre on the border of two pixels belongs to the second, whatever the rounding.
    return np.clip(np.floor(shares * count + 1e-9).astype(np.int64), 0, count - 1)


def _fast(
    image: UInt8[np.ndarray, "H W 3"], size: int, region: Region
) -> tuple[UInt8[np.ndarray, "S S 3"], Region]:
    height, width = image.shape[:2]
    left, top = round(region.left * width), round(region.top * height)
    w = max(1, min(round(region.width * width), width - left))
    h = max(1, min(round(region.height * height), height - top))
    cut = image[top : top + h, left : left + w]
    return resize_bicubic(cut, size), Region(left / width, top / height, w / width, h / height)


def resize_bicubic(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Bicubic with antialiasing on bytes, squashed to a square."""
    if image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    # Imported on use: datasets are also written by processes that hold TensorFlow, not torch.
    import torch
    from torch.nn.functional import interpolate

    # With the batch's dimension in front, and the colours innermost in memory, torch's kernel for
    # bytes reads the picture as it lies, and its square lies like that too.
    whole = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    planes = whole.unsqueeze(0).permute(0, 3, 1, 2)
    square = interpolate(planes, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(square.permute(0, 2, 3, 1)[0].numpy())


def _parity(image: UInt8[np.ndarray, "H W 3"], size: int, region: Region) -> tuple[Pixels, Region]:
    square = resize_rgb(image, size, size)
    if region == WHOLE:
        return square, WHOLE
    rows, top, height = _between_centres(region.top, region.height, size)
    columns, left, width = _between_centres(region.left, region.width, size)
    pixels = _interpolate(square.astype(np.float32), rows, axis=0)
    pixels = _interpolate(pixels, columns, axis=1)
    pixels *= np.float32(1 / 255)
    return pixels, Region(left, top, width, height)


def _between_centres(
    start: float, length: float, size: int
) -> tuple[Float64[np.ndarray, " S"], float, float]:
    """Indices that crop_and_resize samples along an axis, and where its part begins; its length.

    The region is a share of the way from the first pixel's centre to the last one's.
    """
    indices = start * (size - 1) + np.arange(size) * length
    return indices, (indices[0] + 0.5 - 0.5 * length) / size, length


def _interpolate(
    pixels: Float32[np.ndarray, "H W 3"], indices: Float64[np.ndarray, " n"], axis: int
) -> Float32[np.ndarray, "h w 3"]:
    """Linear interpolation along an axis at indices of pixels."""
    low = np.minimum(indices.astype(np.int64), pixels.shape[axis] - 1)
    high = np.minimum(low + 1, pixels.shape[axis] - 1)
    weight = (indices - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    first: np.ndarray = np.take(pixels, low, axis)
    second: np.ndarray = np.take(pixels, high, axis)
    second -= first
    second *= weight
    second += first
    return second
