"""Augmentation in training: a random crop, with K and depth following, and colour jitter.

Every random number comes from the sample's global slot, so a resumed run augments as the unbroken
one. The defaults of a recipe's `data.augment` are those of the released pipeline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as colour

from ..data.sample import Sample
from ..data.transforms import Box, Seen, crop, random_box

Jitter = list[tuple[Callable[[Tensor, float], Tensor], float]]
"""Adjustments of colour and their amounts, in order."""


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
        jitters = {camera: self._jitter(generator) for camera in sorted(sample.images)}
        past = tuple(_recoloured(step, jitters) for step in sample.history)
        return dataclasses.replace(_recoloured(sample, jitters), history=past)

    def _jitter(self, generator: np.random.Generator) -> Jitter:
        """Adjustments of one camera's pictures, the same for every step of a sample."""
        jitter: Jitter = []
        for adjust, strength in (
            (colour.adjust_brightness, self.brightness),
            (colour.adjust_contrast, self.contrast),
            (colour.adjust_saturation, self.saturation),
        ):
            if strength > 0:
                jitter.append((adjust, float(generator.uniform(1 - strength, 1 + strength))))
        if self.hue > 0:
            jitter.append((colour.adjust_hue, float(generator.uniform(-self.hue, self.hue))))
        return jitter


def _recoloured(step: Seen, jitters: dict[str, Jitter]) -> Seen:
    images = {camera: _recolour(image, jitters[camera]) for camera, image in step.images.items()}
    return dataclasses.replace(step, images=images)


def _recolour(image: UInt8[np.ndarray, "H W 3"], jitter: Jitter) -> UInt8[np.ndarray, "H W 3"]:
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    for adjust, amount in jitter:
        pixels = adjust(pixels, amount)
    return pixels.permute(1, 2, 0).contiguous().numpy()
