"""From a recorded picture to the model's size: two ways, with K and depth along either.

- `parity`: the pixels of the released training pipeline. Lanczos to the square, then the crop out
  of that square by bilinear interpolation between the centres of its first and last pixels, which
  is what TensorFlow's crop_and_resize does.
- `fast`: whole pixels are cut out of the recorded picture and resized once, by torch's bicubic
  filter on bytes, which is torchvision's too. It is the bicubic filter of the processor but for a
  level in 0.5 % of the values of a picture of noise, so that training and inference see the same
  kernel. The default.

Each way says which part of the picture the result really shows; K and depth are computed from that.

Image transforms that carry intrinsics and depth along: pure functions on a `Sample`.

Pixel centres lie at +0.5, so that a resize by (sx, sy) scales K's first row by sx and its second
by sy, and a crop subtracts its corner from cx and cy. RGB is resampled with a filter; depth takes
the nearest stored pixel, since an average over an edge is a point where nothing is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from spatialvla_ft.data.colour import UNCHANGED, Jitter, Pixels, recolour
from spatialvla_ft.data.sample import Observation, Sample
from spatialvla_ft.geometry.intrinsics import scale_intrinsics
from spatialvla_ft.pictures import rgb_bytes

Seen = TypeVar("Seen", bound=Observation)
"""A sample, or a past step of one."""

K33 = Float64[np.ndarray, "3 3"]


@dataclass(frozen=True)
class Box:
    """A crop, in pixels of the image it is taken from: left, top, width, height."""

    left: int
    top: int
    width: int
    height: int


def crop_intrinsics(K: K33, left: float, top: float) -> K33:
    """K after `left` columns and `top` rows are cut off."""
    moved = K.copy()
    moved[0] -= left * K[2]
    moved[1] -= top * K[2]
    return moved


def resize_rgb(
    image: UInt8[np.ndarray, "H W 3"], width: int, height: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Lanczos with antialiasing, as the released training pipeline resizes."""
    if image.shape[:2] == (height, width):
        return image
    size = (width, height)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def resize_depth(
    depth: Float32[np.ndarray, "H W"], width: int, height: int
) -> Float32[np.ndarray, "h w"]:
    """The stored pixel under each new pixel's centre; unknown (0) stays unknown."""
    rows = _nearest(depth.shape[0], height)
    columns = _nearest(depth.shape[1], width)
    return np.ascontiguousarray(depth[rows[:, None], columns])


def _nearest(old: int, new: int) -> np.ndarray:
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)


def resize(sample: Seen, width: int, height: int) -> Seen:
    """Every image squashed to `width` x `height`, with its depth and K; history too."""
    sample = _with_history(sample, lambda past: resize(past, width, height))
    intrinsics = {}
    for slot, K in sample.intrinsics.items():
        old_height, old_width = sample.images[slot].shape[:2]
        intrinsics[slot] = scale_intrinsics(K, width / old_width, height / old_height)
    return dataclasses.replace(
        sample,
        images={k: resize_rgb(image, width, height) for k, image in sample.images.items()},
        depth=_each(sample.depth, lambda depth: resize_depth(depth, width, height)),
        intrinsics=intrinsics,
    )


def squash(sample: Seen, size: int) -> Seen:
    """Every image to a square of `size` pixels; the aspect ratio is not kept, as released."""
    return resize(sample, size, size)


def crop(sample: Seen, boxes: dict[str, Box]) -> Seen:
    """Cut a box out of the image, depth and K of each slot in `boxes`; others stay.

    Past steps are cut at the same place, so that a camera that stands still still does. Depth of
    another size than its image is cut at the same relative place.

    Raises:
        ValueError: a slot that the sample has not, or a box that leaves its image.
    """
    sample = _with_history(sample, lambda past: crop(past, boxes))
    images, intrinsics = dict(sample.images), dict(sample.intrinsics)
    depth = None if sample.depth is None else dict(sample.depth)
    for slot, box in boxes.items():
        if slot not in images:
            raise ValueError(f"no image {slot!r} to crop; the sample has {sorted(images)}")
        height, width = images[slot].shape[:2]
        inside = box.left >= 0 and box.top >= 0 and box.width > 0 and box.height > 0
        if not inside or box.left + box.width > width or box.top + box.height > height:
            raise ValueError(f"{box} leaves the {width} x {height} image {slot!r}")
        images[slot] = _cut(images[slot], box)
        if slot in intrinsics:
            intrinsics[slot] = crop_intrinsics(intrinsics[slot], box.left, box.top)
        if depth is not None and slot in depth:
            depth[slot] = _cut(_match(depth[slot], width, height), box)
    return dataclasses.replace(sample, images=images, depth=depth, intrinsics=intrinsics)


def _match(depth: Float32[np.ndarray, "H W"], width: int, height: int) -> np.ndarray:
    return depth if depth.shape == (height, width) else resize_depth(depth, width, height)


def _cut(array: np.ndarray, box: Box) -> np.ndarray:
    rows = slice(box.top, box.top + box.height)
    return np.ascontiguousarray(array[rows, box.left : box.left + box.width])


def flip(step: Observation) -> Observation:
    """What is seen in a mirror: pictures, depth and K with left and right exchanged.

    Points that are back-projected from it are mirrored, (x, y, z) to (-x, y, z): a flipped picture
    is that of a mirrored world, and fx stays positive. Hence what a robot does or feels in it is
    mirrored too, and neither follows a picture alone (docs/decisions/0011-flips.md).

    Raises:
        ValueError: the step has actions, proprioception or extrinsics, or K has a skew.
    """
    if isinstance(step, Sample):
        raise ValueError(
            f"a sample of {step.dataset} has actions, which do not follow a mirrored picture: flip "
            "its observations, or mirror the robot's frame as docs/decisions/0011-flips.md says"
        )
    if step.proprio is not None or step.extrinsics:
        what = "extrinsics" if step.extrinsics else "proprioception"
        raise ValueError(
            f"the observation has {what}, which a mirror turns into no rigid pose: leave it out "
            "with dataclasses.replace, or mirror the robot's frame"
        )
    intrinsics = {}
    for slot, K in step.intrinsics.items():
        if K[0, 1] != 0:
            raise ValueError(f"K of {slot!r} has a skew of {K[0, 1]}, which a flip would negate")
        intrinsics[slot] = flip_intrinsics(K, step.images[slot].shape[1])
    return dataclasses.replace(
        step,
        images={slot: np.ascontiguousarray(image[:, ::-1]) for slot, image in step.images.items()},
        depth=_each(step.depth, lambda depth: np.ascontiguousarray(depth[:, ::-1])),
        intrinsics=intrinsics,
    )


def flip_intrinsics(K: K33, width: int) -> K33:
    """K of the picture with left and right exchanged: cx becomes width - cx."""
    mirrored = K.copy()
    mirrored[0, 2] = width - K[0, 2]
    return mirrored


def random_box(
    generator: np.random.Generator, width: int, height: int, *, area: float = 0.9
) -> Box:
    """A box of the image's own shape and `area` of its surface, anywhere in it."""
    if not 0 < area <= 1:
        raise ValueError(f"area must be in (0, 1], got {area}")
    w = max(1, round(width * area**0.5))
    h = max(1, round(height * area**0.5))
    left = int(generator.integers(0, width - w + 1))
    top = int(generator.integers(0, height - h + 1))
    return Box(left, top, w, h)


def random_resized_crop(sample: Sample, size: int, *, seed: int, area: float = 0.9) -> Sample:
    """A random crop of every camera, squashed to `size`; `seed` is the sample's global slot."""
    generator = np.random.default_rng(seed)
    boxes = {}
    for slot in sorted(sample.images):
        height, width = sample.images[slot].shape[:2]
        boxes[slot] = random_box(generator, width, height, area=area)
    return squash(crop(sample, boxes), size)


def _with_history(sample: Seen, apply: Callable[[Observation], Observation]) -> Seen:
    if not isinstance(sample, Sample) or not sample.history:
        return sample
    return dataclasses.replace(sample, history=tuple(apply(past) for past in sample.history))


def _each(
    values: dict[str, np.ndarray] | None, apply: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray] | None:
    return None if values is None else {slot: apply(value) for slot, value in values.items()}


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
