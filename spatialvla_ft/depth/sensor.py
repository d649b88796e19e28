"""A depth camera's reading as a depth estimator."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.holes import fill_holes
from .metres import reading_in_metres
from .protocol import check_pictures


class SensorDepth:
    """The reading that belongs to a batch of pictures, its holes filled by the one rule.

    For comparing a sensor with networks through the same protocol. Training and policies hand a
    reading to the model as it is, so that unknown pixels stay out of the means over cells.

    Args:
        metres: floats, registered to the pictures; 0, negative, NaN or infinite where unknown.

    Raises:
        ValueError: another shape, or whole numbers, which are not metres.
    """

    name = "sensor"
    uses_intrinsics = False

    def __init__(self, metres: Float[Tensor, "B H W"]) -> None:
        if metres.ndim != 3:
            raise ValueError(f"a reading must be (B, H, W) metres, got {tuple(metres.shape)}")
        reading = np.require(reading_in_metres(metres, "the reading"), requirements=["C", "W"])
        self.reading = torch.from_numpy(reading).to(metres.device)

    @property
    def fingerprint(self) -> str:
        """Hash of the reading."""
        data = self.reading.cpu().contiguous().numpy()
        return hashlib.blake2b(
            repr(data.shape).encode() + data.tobytes(), digest_size=16
        ).hexdigest()

    def __call__(
        self,
        pictures: Float[Tensor, "B 3 H W"],
        intrinsics: Float[Tensor, "B 3 3"] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """The reading without holes.

        Raises:
            ValueError: the reading does not fit the pictures, or one has no known pixel.
        """
        check_pictures(pictures, intrinsics)
        wanted = (pictures.shape[0], *pictures.shape[-2:])
        if tuple(self.reading.shape) != wanted:
            raise ValueError(
                f"the reading is {tuple(self.reading.shape)}, the pictures need {wanted}; depth "
                "must be registered to its picture"
            )
        return fill_holes(self.reading).to(pictures.device, torch.float32)
