"""The inputs that an export is checked on: recorded steps, or random pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..data.sample import Sample
from ..geometry.intrinsics import scale_intrinsics
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.canary import chequered
from ..policy.inputs import Collator, model_depth_input, takes_depth

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
        control_hz: rate of the dataset's actions; None where it is not known.
    """

    tensors: dict[str, Tensor]
    keys: list[str | None]
    texts: list[str]
    origin: str
    control_hz: float | None = None

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.texts)


def recorded_inputs(
    dataset: Sequence[Sample],
    processor: SpatialVLAProcessor,
    config: SpatialVLAConfig,
    *,
    count: int,
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
    name = samples[0].dataset
    if unnorm_key is None and name in processor.statistics:
        unnorm_key = name
    unnorm_key = processor.choose_statistics(unnorm_key)
    depth = model_depth_input(config)
    collate = Collator(processor, depth, with_actions=False, unnorm_key=unnorm_key)
    return Inputs(
        tensors=collate(samples),
        keys=[unnorm_key] * len(samples),
        texts=[sample.instruction for sample in samples],
        origin=f"{len(samples)} steps of {name}",
        control_hz=samples[0].action_space.control_hz,
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
    views = processor.layout.num_views

    def of_each_view(make: Callable[[], np.ndarray]) -> list[list[np.ndarray]]:
        return [[make() for _ in range(views)] for _ in range(count)]

    def metres() -> np.ndarray:
        return rng.uniform(0.3, 1.5, (size, size)).astype(np.float32)

    inputs = processor(
        images=of_each_view(lambda: chequered(rng, size)),
        text=texts,
        unnorm_key=keys if names[0] is not None else None,
        intrinsic=[_intrinsics(processor, key, size) for key in keys],
        depth=of_each_view(metres) if takes_depth(config) else None,
        proprio=_proprio(processor, keys, rng),
    )
    return Inputs(dict(inputs), keys, texts, f"{count} random pictures (no dataset was given)")


def _proprio(
    processor: SpatialVLAProcessor, keys: Sequence[str | None], rng: np.random.Generator
) -> np.ndarray | None:
    """(count, W, K) between the quantiles of each robot, or None where the model reads none."""
    if processor.layout.proprio_dim is None:
        return None
    rows = []
    for key in keys:
        entry = processor.statistics[processor.choose_statistics(key)]["proprio"]
        shape = (processor.layout.window, processor.layout.proprio_dim)
        rows.append(rng.uniform(entry["q01"], entry["q99"], shape))
    return np.stack(rows)


def _intrinsics(processor: SpatialVLAProcessor, key: str | None, size: int) -> list[np.ndarray]:
    """K of every view for a picture of `size`; a plausible one where the camera is not known."""
    layout = processor.layout
    config = processor.intrinsic_config
    matrices = []
    for i, camera in enumerate(layout.cameras):
        entry = config.get(key or "") or config.get("default") or {}
        entry = entry if i == 0 else entry.get("cameras", {}).get(camera, {})
        if entry:
            stored = np.asarray(entry["intrinsic"], np.float64)
            matrices.append(scale_intrinsics(stored, size / entry["width"], size / entry["height"]))
        else:
            matrices.append(np.array([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]]))
    return matrices * layout.window
