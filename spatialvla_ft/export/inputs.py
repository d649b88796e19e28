"""The inputs that an export is checked on: recorded steps, or random pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..data.sample import Sample
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..training.collate import Collator

RANDOM_TEXTS = ("pick up the red block", "open the drawer", "move left", "put the cup on the plate")


@dataclass(frozen=True)
class Inputs:
    """Prompts for a model, and where they come from.

    Attributes:
        tensors: input_ids, attention_mask, token_type_ids, pixel_values, intrinsics and, where the
            model takes the sensor's, depth.
        keys: statistics each answer is decoded with; None where the processor has none.
        texts: the instructions.
        origin: for people, e.g. "8 steps of bridge/1.0.0".
    """

    tensors: dict[str, Tensor]
    keys: list[str | None]
    texts: list[str]
    origin: str

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.texts)


def takes_depth(config: SpatialVLAConfig) -> bool:
    """Whether depth is an input of the model rather than its own estimate."""
    return config.use_vision_zoe and config.vision_zoe_config is None


def recorded_inputs(
    dataset: Sequence[Sample],
    processor: SpatialVLAProcessor,
    config: SpatialVLAConfig,
    *,
    count: int,
    camera: str = "primary",
    unnorm_key: str | None = None,
) -> Inputs:
    """Evenly spaced steps of a dataset.

    Raises:
        ValueError: an empty dataset, a sample without what the model takes, or unknown statistics.
    """
    if len(dataset) == 0:
        raise ValueError("the dataset has no step to store as an input; pass another one")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round())
    samples = [dataset[int(i)] for i in chosen]
    collate = Collator(
        processor, camera, "sensor" if takes_depth(config) else "estimate", with_actions=False
    )
    name = samples[0].dataset
    if unnorm_key is None and name in processor.statistics:
        unnorm_key = name
    return Inputs(
        tensors=collate(samples),
        keys=[processor.choose_statistics(unnorm_key)] * len(samples),
        texts=[sample.instruction for sample in samples],
        origin=f"{len(samples)} steps of {name}",
    )


def random_inputs(
    processor: SpatialVLAProcessor, config: SpatialVLAConfig, *, count: int, seed: int = 0
) -> Inputs:
    """Random pictures, cameras as in `intrinsic_config`, statistics in turn."""
    rng = np.random.default_rng(seed)
    size = processor.image_size
    names: list[str | None] = [*sorted(processor.statistics)] or [None]
    keys = [names[i % len(names)] for i in range(count)]
    texts = [RANDOM_TEXTS[i % len(RANDOM_TEXTS)] for i in range(count)]
    inputs = processor(
        images=[_blocks(rng, size) for _ in range(count)],
        text=texts,
        intrinsic=[_intrinsic(processor, key, size) for key in keys],
        depth=(
            [rng.uniform(0.3, 1.5, (size, size)).astype(np.float32) for _ in range(count)]
            if takes_depth(config)
            else None
        ),
    )
    return Inputs(dict(inputs), keys, texts, f"{count} random pictures (no dataset was given)")


def _blocks(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) uint8: random colours in an 8 x 8 chequerboard, so that patches differ."""
    cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    where = np.arange(size) * 8 // size
    return cells[where][:, where]


def _intrinsic(processor: SpatialVLAProcessor, key: str | None, size: int) -> np.ndarray:
    entry = processor.intrinsic_config.get(key or "") or processor.intrinsic_config.get("default")
    if entry is None:
        return np.array([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]], np.float64)
    scale = np.array([size / entry["width"], size / entry["height"], 1.0])
    return np.asarray(np.asarray(entry["intrinsic"], np.float64) * scale[:, None])
