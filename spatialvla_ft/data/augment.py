"""Augmentation in training: a random crop, with K and depth following, and colour jitter.

Every random number comes from the sample's global slot, so a resumed run augments as the unbroken
one. The defaults of a recipe's `data.augment` are those of the released pipeline: crop, brightness,
contrast, saturation, hue, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .colour import Jitter
from .pictures import ImagePath, fit_step, random_region
from .sample import Sample


@dataclass(frozen=True)
class Augment:
    """What to vary; cameras vary on their own, the steps of a window alike.

    Attributes:
        crop_area: share of the picture's area that a random crop keeps; 1 for no crop.
        brightness: what is added to channels in [0, 1] is drawn from -x to x.
        contrast, saturation: factors are drawn from 1 - x to 1 + x.
        hue: shift is drawn from -x to x, in turns.
    """

    crop_area: float = 0.9
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05

    def __call__(
        self, sample: Sample, slot: int, seed: int, *, size: int, path: ImagePath = "fast"
    ) -> Sample:
        """The sample as seen at a global slot of a run, its pictures squares of `size` pixels."""
        generator = np.random.default_rng((seed, slot))
        cameras = sorted(sample.images)
        regions = {camera: random_region(generator, self.crop_area) for camera in cameras}
        jitters = {camera: self._jitter(generator) for camera in cameras}
        return fit_step(sample, size, path, regions, jitters)

    def _jitter(self, generator: np.random.Generator) -> Jitter:
        def around(centre: float, strength: float) -> float:
            return float(generator.uniform(centre - strength, centre + strength))

        return Jitter(
            brightness=around(0, self.brightness),
            contrast=around(1, self.contrast),
            saturation=around(1, self.saturation),
            hue=around(0, self.hue),
        )
