"""Augmentation in training: a random crop, with K and depth following, and colour jitter.

Every random number comes from the sample's global slot, so a resumed run augments as the unbroken
one. The defaults of a recipe's `data.augment` are those of the released pipeline.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torchvision.transforms.v2 import functional as colour

from ..data.sample import Sample
from ..data.transforms import Box, crop, random_box


@dataclass(frozen=True)
class Augment:
    """What to vary.

    Attributes:
        crop_area: share of the picture's area that a random crop keeps; 1 for no crop.
        brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x.
        hue: shift is drawn from -x to x, in turns.
    """

    crop_area: float = 0.9
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05

    def __call__(self, sample: Sample, slot: int, seed: int) -> Sample:
        """The sample as seen at a global slot of a run."""
        generator = np.random.default_rng((seed, slot))
        if self.crop_area < 1:
            boxes: dict[str, Box] = {}
            for camera in sorted(sample.images):
                height, width = sample.images[camera].shape[:2]
                boxes[camera] = random_box(generator, width, height, area=self.crop_area)
            sample = crop(sample, boxes)
        images = {
            camera: self._jitter(sample.images[camera], generator)
            for camera in sorted(sample.images)
        }
        return dataclasses.replace(sample, images=images)

    def _jitter(
        self, image: UInt8[np.ndarray, "H W 3"], generator: np.random.Generator
    ) -> UInt8[np.ndarray, "H W 3"]:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        for adjust, strength in (
            (colour.adjust_brightness, self.brightness),
            (colour.adjust_contrast, self.contrast),
            (colour.adjust_saturation, self.saturation),
        ):
            if strength > 0:
                pixels = adjust(pixels, float(generator.uniform(1 - strength, 1 + strength)))
        if self.hue > 0:
            pixels = colour.adjust_hue(pixels, float(generator.uniform(-self.hue, self.hue)))
        return pixels.permute(1, 2, 0).contiguous().numpy()
