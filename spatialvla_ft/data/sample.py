"""The one contract between every dataset reader and everything that consumes data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from spatialvla_ft.actions.spaces import ActionSpace, RawActions


@dataclass(frozen=True)
class Sample:
    """One observed step and the actions that follow it.

    Attributes:
        images: RGB per camera, (H, W, 3) uint8.
        depth: metres per camera, (H, W) float32, along the optical axis; 0 where unknown.
            None when the dataset has no depth.
        intrinsics: (3, 3) float64 per camera, pixels, for the image given here; empty if unknown.
        instruction: what the robot was told, in words.
        actions: (horizon, dim) in the robot's units; past the end of the episode the last action
            is repeated and `valid` is False.
        action_space: names, units and frames of `actions`.
        valid: (horizon,) True where the episode really has that action.
        proprio: (n,) float32 or None.
        dataset, episode, step: where the sample comes from; indices count from 0.
    """

    images: dict[str, UInt8[np.ndarray, "H W 3"]]
    depth: dict[str, Float32[np.ndarray, "H W"]] | None
    intrinsics: dict[str, Float64[np.ndarray, "3 3"]]
    instruction: str
    actions: RawActions
    action_space: ActionSpace
    valid: Bool[np.ndarray, " horizon"]
    proprio: Float32[np.ndarray, " n"] | None
    dataset: str
    episode: int
    step: int
