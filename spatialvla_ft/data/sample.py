"""The one contract between every dataset reader and everything that consumes data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from spatialvla_ft.actions.spaces import ActionSpace, RawActions


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What is seen and felt at one step.

    Attributes:
        images: RGB per camera, (H, W, 3) uint8.
        depth: metres per camera, (H, W) float32, along the optical axis; 0 where unknown.
            None when there is no depth.
        intrinsics: (3, 3) float64 per camera, pixels, for the image given here; empty if unknown.
        extrinsics: (4, 4) float64 per camera, camera (OpenCV axes) to a frame that the cameras of
            an episode share, metres; empty if unknown.
        proprio: (n,) float32 or None.
    """

    images: dict[str, UInt8[np.ndarray, "H W 3"]]
    depth: dict[str, Float32[np.ndarray, "H W"]] | None = None
    intrinsics: dict[str, Float64[np.ndarray, "3 3"]] = field(default_factory=dict)
    extrinsics: dict[str, Float64[np.ndarray, "4 4"]] = field(default_factory=dict)
    proprio: Float32[np.ndarray, " n"] | None = None


@dataclass(frozen=True, kw_only=True)
class Sample(Observation):
    """One observed step and the actions that follow it.

    Attributes:
        instruction: what the robot was told, in words.
        actions: (horizon, dim) in the robot's units; past the end of the episode the last action
            is repeated and `valid` is False.
        action_space: names, units and frames of `actions`.
        valid: (horizon,) True where the episode really has that action.
        dataset, episode, step: where the sample comes from; indices count from 0.
        target_point: (3,) centre of what the instruction names, base frame of the robot, metres;
            None where it is not known.
        reference_point: (3,) the same of what it is put in relation to.
        sentences: all ways in which the instruction is said, where the card has one of them drawn
            in training; `instruction` is the first of them, or the one that was drawn.
        history: the steps before this one, oldest first, as many as were asked for; before the
            episode's first step that one is repeated.
    """

    instruction: str
    actions: RawActions
    action_space: ActionSpace
    valid: Bool[np.ndarray, " horizon"]
    dataset: str
    episode: int
    step: int
    target_point: Float32[np.ndarray, 3] | None = None
    reference_point: Float32[np.ndarray, 3] | None = None
    sentences: tuple[str, ...] = ()
    history: tuple[Observation, ...] = ()

    @property
    def observations(self) -> tuple[Observation, ...]:
        """History and the present step, oldest first."""
        return (*self.history, self)
