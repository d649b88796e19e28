"""From a camera's picture, K, depth and pose to those of the model's square input picture.

N views make one prompt; lists are flat, a prompt's views in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ..depth.metres import reading_in_metres
from ..geometry.holes import mark_unknown
from ..geometry.intrinsics import scale_intrinsics
from ..pictures import as_array


def image_processor(image_size: int, patch_size: int) -> SiglipImageProcessorPil:
    """Squash to a square (bicubic) and divide by 255; the model normalises."""
    processor = SiglipImageProcessorPil(
        size={"height": image_size, "width": image_size},
        do_normalize=False,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_resize=True,
        resample=3,
    )
    processor.image_seq_length = (image_size // patch_size) ** 2
    return processor


def square_intrinsics(intrinsic: Any, height: int, width: int, size: int) -> Float[Tensor, "3 3"]:
    """K of the picture after it was squashed from (height, width) to (size, size)."""
    matrix = torch.as_tensor(np.asarray(intrinsic, dtype=np.float64))
    if matrix.shape != (3, 3) or not bool(torch.isfinite(matrix).all()):
        raise ValueError(
            f"an intrinsic must be a finite (3, 3) matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
            f"pixels, got {np.asarray(intrinsic).tolist()}"
        )
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise ValueError(f"focal lengths must be positive, got K = {matrix.tolist()}")
    return scale_intrinsics(matrix, size / width, size / height).float()


def square_depth(depth: Any, height: int, width: int, size: int) -> Float[Tensor, "S S"]:
    """Depth squashed to (size, size) by nearest neighbour, which never mixes two surfaces.

    Values that are not finite or not positive become 0, 'unknown'. Whole numbers raise ValueError,
    and what can hardly be metres is warned of; see `reading_in_metres`.
    """
    # torch takes neither a flipped view of an array nor the read-only one of a PIL image.
    reading = np.require(reading_in_metres(depth), requirements=["C", "W"])
    metres = torch.from_numpy(reading).squeeze()
    if metres.shape != (height, width):
        raise ValueError(
            f"depth has shape {tuple(metres.shape)}, its picture is {height} x {width}; depth must "
            "be registered to the picture, in metres"
        )
    metres = mark_unknown(metres)
    if (height, width) == (size, size):
        return metres
    rows = ((torch.arange(size) + 0.5) * height / size).long()
    columns = ((torch.arange(size) + 0.5) * width / size).long()
    return metres[rows][:, columns]


def prompts_of_views(images: Any, views: int) -> list[list[Any]]:
    """Pictures of each prompt: a list of N per prompt, from whatever form the caller gave."""
    if views == 1 and not _is_sequence(images):
        return [[images]]
    items = list(images)
    if views > 1 and items and not _is_sequence(items[0]):
        items = [items]
    prompts = [list(item) if _is_sequence(item) else [item] for item in items]
    wrong = [len(prompt) for prompt in prompts if len(prompt) != views]
    if wrong or not prompts:
        raise ValueError(
            f"each prompt takes {views} picture(s), oldest step first and the cameras in order "
            f"within it; got {wrong[0] if wrong else 'none'}"
        )
    return prompts


def _is_sequence(images: Any) -> bool:
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) >= 4


def per_item(value: str | Sequence[str] | None, count: int, name: str) -> list[str | None]:
    """One value per prompt, from one for all or a list."""
    if value is None or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} items")
    return list(value)


def per_view(value: Any, prompts: int, views: int, name: str) -> list[np.ndarray]:
    """One matrix per view of each prompt, flat.

    Args:
        value: one matrix for all; a list of them, one per prompt (N = 1) or one per view, which
            all prompts share (N > 1); or a list per prompt of one per view.
        prompts: number of prompts.
        views: N.
        name: for the error.
    """
    axes = _axes(value)
    if axes == 2:
        nested = [[value] * views] * prompts
    elif axes == 3:
        nested = [[one] for one in value] if views == 1 else [list(value)] * prompts
    elif axes == 4:
        nested = [list(part) for part in value]
    else:
        raise ValueError(f"{name} must be matrices (2 axes), alone or in lists; got {axes} axes")
    if len(nested) != prompts or any(len(part) != views for part in nested):
        have = sorted({len(part) for part in nested})
        raise ValueError(
            f"{name} has {len(nested)} prompts of {have} matrices; the pictures are {prompts} "
            f"prompt(s) of {views}: give one each"
        )
    flat = [one for part in nested for one in part]
    listed = (list, tuple)
    return [np.asarray(x) if isinstance(x, listed) else as_array(x, name) for x in flat]


def _axes(value: Any) -> int:
    """Axes of a nested list of arrays; arrays of a list may differ in shape, not in axes."""
    if isinstance(value, (list, tuple)):
        return 1 + (_axes(value[0]) if value else 0)
    return int(np.ndim(value))


def known_intrinsics(
    config: Mapping[str, Any], key: str | None, camera: str, first: bool, assumed: str | None
) -> tuple[Any, int, int]:
    """K and the size it belongs to, (K, height, width), of a dataset's camera.

    Args:
        config: `intrinsic_config`: per dataset its first camera's "intrinsic", "height", "width",
            and under "cameras" the same for each further one by name.
        key: the dataset; None takes the only one.
        camera: name in the layout.
        first: whether it is the layout's first camera.
        assumed: dataset to use where the camera is not known.

    Raises:
        ValueError: the camera is not known; says how to supply it.
    """
    if assumed is not None and assumed not in config:
        raise ValueError(
            f"assume_intrinsics={assumed!r} is not in intrinsic_config; it has {sorted(config)}"
        )
    if key is None:
        named = [name for name in config if name != "default"]
        key = named[0] if len(named) == 1 else None
    for name in (key, assumed):
        entry = config.get(name) if name is not None else None
        if entry is not None and not first:
            entry = entry.get("cameras", {}).get(camera)
        if entry is not None:
            return entry["intrinsic"], int(entry["height"]), int(entry["width"])
    raise ValueError(
        f"the intrinsics of camera {camera!r} are not known for dataset {key!r}. Pass intrinsic=K "
        f"(3 x 3, pixels of this picture), or unnorm_key= one of {sorted(config)}, or, if a guess "
        "will do, assume_intrinsics= one of these names"
    )


def relative_poses(poses: Sequence[np.ndarray], reference: int) -> Float[Tensor, "N 4 4"]:
    """Camera-to-reference transforms from camera-to-common ones.

    A view whose pose is not known (NaN) stays in its own frame (the identity), and so do all of
    them when the reference view's is not known.

    Args:
        poses: camera to a frame that the views share, (4, 4) each, metres.
        reference: which view's frame the result is in.
    """
    matrices = np.stack([np.asarray(pose, np.float64) for pose in poses])
    if matrices.shape[1:] != (4, 4):
        raise ValueError(f"extrinsics must be 4 x 4 per view, got {matrices.shape[1:]}")
    known = np.isfinite(matrices).all(axis=(1, 2))
    rotations = matrices[known][:, :3, :3]
    orthonormal = np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3), atol=1e-3)
    if not orthonormal or not np.allclose(matrices[known][:, 3], [0, 0, 0, 1]):
        raise ValueError(
            "extrinsics must be rigid transforms [[R, t], [0, 0, 0, 1]] from the camera to a frame "
            f"that the views share, metres; got {matrices[known].tolist()}"
        )
    out = np.tile(np.eye(4), (len(matrices), 1, 1))
    if known[reference]:
        out[known] = np.linalg.inv(matrices[reference]) @ matrices[known]
    return torch.as_tensor(out, dtype=torch.float32)
