"""Open loop: predict the actions of recorded steps and measure how far off they are.

It proves little alone (a policy can be close on average and miss every object): read it beside the
closed loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..actions.normalise import ActionStatistics, normalise
from ..actions.ranges import lost_dimensions, lost_words
from ..data.opening import open_dataset
from ..data.sample import Sample
from ..data.samples import SampleDataset
from ..data.stats.statistics import normalised_dimensions
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.cells import predicted
from ..policy.inputs import Collator, DepthInput, model_depth_input


@dataclass(frozen=True)
class OpenLoop:
    """Errors on recorded steps.

    Attributes:
        dataset: where the steps come from.
        frames: how many steps were predicted; every action of a chunk that the episode really has
            counts.
        names, units: of the action dimensions.
        l1: {policy: mean absolute error per dimension, in the robot's units}.
        token_accuracy: share of predicted tokens that equal the recorded action's, by type; of
            heads without tokens, of predicted actions in the same cell of the grid.
        lost: a sentence about each dimension whose motion the statistics cannot express.
    """

    dataset: str
    frames: int
    names: tuple[str, ...]
    units: tuple[str, ...]
    l1: dict[str, list[float]]
    token_accuracy: dict[str, float]
    lost: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def open_recorded(
    dataset: str | Path, processor: SpatialVLAProcessor, *, card: Path | None, split: str
) -> SampleDataset:
    """Recorded steps as a policy takes them in: its cameras, its window, its chunk of actions."""
    return open_dataset(
        dataset,
        card=card,
        horizon=processor.action_chunk_size,
        split=split,
        window=processor.layout.window,
        cameras=processor.layout.cameras,
    )


def predicted_frames(dataset: SampleDataset, count: int) -> list[int]:
    """At most so many frames, evenly spaced."""
    count = min(count, len(dataset))
    found: list[int] = np.unique(
        np.linspace(0, len(dataset) - 1, count).round().astype(int)
    ).tolist()
    return found


@torch.no_grad()
def run_open_loop(
    model: SpatialVLAForConditionalGeneration,
    processor: SpatialVLAProcessor,
    dataset: SampleDataset,
    *,
    unnorm_key: str | None = None,
    frames: int = 256,
    batch_size: int = 16,
    depth: DepthInput | None = None,
    read: Callable[[int], Sample] | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> OpenLoop:
    """Predict evenly spaced steps of a dataset, beside no motion and the mean action.

    Args:
        model: in evaluation mode, on any device.
        processor: of the model.
        dataset: with the model's chunk as horizon.
        unnorm_key: statistics to decode with; None takes the dataset's own if the processor has
            them, else its only ones.
        frames: at most this many steps.
        batch_size: steps per prediction.
        depth: whether the model gets the samples' depth; None gives it where the model has no
            estimator of its own.
        read: a step of the dataset as the model is to see it; None as recorded.
        on_frames: told how many steps are done.
    """
    if unnorm_key is None and dataset.name in processor.statistics:
        unnorm_key = dataset.name
    unnorm_key = processor.choose_statistics(unnorm_key)
    statistics = ActionStatistics.from_dict(processor.statistics[unnorm_key])
    if depth is None:
        depth = model_depth_input(model.config)
    read = dataset.__getitem__ if read is None else read
    collate = Collator(processor, depth, with_actions=False, unnorm_key=unnorm_key)
    chosen = predicted_frames(dataset, frames)
    truths, guesses, valid, hits = [], [], [], []
    for start in range(0, len(chosen), batch_size):
        samples = [read(i) for i in chosen[start : start + batch_size]]
        inputs = {name: tensor.to(model.device) for name, tensor in collate(samples).items()}
        ids, normalised_guess = predicted(model, inputs, processor.grid)
        guesses.append(processor.to_robot_units(normalised_guess, unnorm_key))
        actions = np.stack([sample.actions for sample in samples])
        normalised = normalise(actions, statistics)
        flat = normalised.reshape(-1, normalised.shape[-1])
        true_ids = processor.action_tokenizer.encode(flat).reshape(*actions.shape[:2], -1)
        hits.append(ids.reshape(true_ids.shape) == true_ids)
        truths.append(actions)
        valid.append(np.stack([sample.valid for sample in samples]))
        if on_frames is not None:
            on_frames(start + len(samples))
    mask = np.concatenate(valid)
    truth, guess = np.concatenate(truths)[mask], np.concatenate(guesses)[mask]
    right = np.concatenate(hits)[mask]
    still = np.zeros_like(truth)
    held = ~dataset.action_space.deltas
    still[:, held] = statistics.mean[held]
    grippers = ~normalised_dimensions(dataset.action_space)
    still[:, grippers] = np.round(statistics.mean[grippers])
    mean = np.broadcast_to(statistics.mean, truth.shape)
    l1 = {
        name: np.abs(prediction - truth).mean(axis=0).tolist()
        for name, prediction in (("model", guess), ("no motion", still), ("mean action", mean))
    }
    names, units = dataset.action_space.names, dataset.action_space.units
    lost = lost_dimensions(statistics, truth.astype(np.float64))
    return OpenLoop(
        dataset=dataset.name,
        frames=len(chosen),
        names=names,
        units=units,
        l1=l1,
        token_accuracy=dict(
            zip(
                (slot.name for slot in processor.grid.slots),
                right.mean(axis=0).tolist(),
                strict=True,
            )
        ),
        lost=[
            f"with the statistics of {unnorm_key}, {words}"
            for words in lost_words(statistics, lost, names, units)
        ],
    )
