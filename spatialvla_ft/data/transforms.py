"""Image transforms that carry intrinsics and depth along: pure functions on a `Sample`.

Pixel centres lie at +0.5, so that a resize by (sx, sy) scales K's first row by sx and its second
by sy, and a crop subtracts its corner from cx and cy. RGB is resampled with a filter; depth takes
the nearest stored pixel, since an average over an edge is a point where nothing is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from spatialvla_ft.data.sample import Observation, Sample

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


def scale_intrinsics(K: K33, sx: float, sy: float) -> K33:
    """K after the image is stretched by `sx` and `sy`."""
    return np.asarray(K * np.array([[sx], [sy], [1.0]]))


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
