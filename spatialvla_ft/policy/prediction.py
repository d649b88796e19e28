"""One observation in, one chunk of actions in the robot's units out, with names and certainty.

Shape letters: K actions of a chunk, A numbers of an action, C cells of a heatmap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from ..actions.normalise import ActionStatistics, unnormalise
from ..actions.spaces import ActionSpace
from ..data.cards.fields import CONTROL_HZ
from ..data.sample import Observation
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from .inputs import model_depth_input, observation_inputs


@dataclass(frozen=True)
class Heat:
    """Where a head's probability lies, for one group of numbers.

    Attributes:
        start: first number of the action.
        points: centre of every cell, in the robot's units.
        chance: of every cell; rows sum to 1.
    """

    start: int
    points: Float64[np.ndarray, "C d"]
    chance: Float64[np.ndarray, "K C"]


@dataclass(frozen=True)
class PredictedChunk:
    """What a policy would do next.

    Attributes:
        actions: in the robot's units.
        spread: one standard deviation of each number, in the same units; None where the head does
            not know.
        heat: {slot: where its probability lies}, of heads with cells.
        space: names, units and frames of the numbers.
        unnorm_key: whose statistics gave the units.
        control_hz: rate at which actions are executed; None where it is not known.
        head: kind of the action head.
    """

    actions: Float64[np.ndarray, "K A"]
    spread: Float64[np.ndarray, "K A"] | None
    heat: dict[str, Heat]
    space: ActionSpace
    unnorm_key: str
    control_hz: float | None
    head: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the heatmaps."""
        return {
            "actions": self.actions.tolist(),
            "spread": None if self.spread is None else self.spread.tolist(),
            "names": list(self.space.names),
            "units": list(self.space.units),
            "frames": [group.frame for group in self.space.groups for _ in group.names],
            "delta": self.space.deltas.tolist(),
            "unnorm_key": self.unnorm_key,
            "control_hz": self.control_hz,
            "head": self.head,
        }


def predict_chunk(
    model: SpatialVLAForConditionalGeneration,
    processor: SpatialVLAProcessor,
    steps: Sequence[Observation],
    instruction: str,
    *,
    unnorm_key: str | None = None,
    mode: str | None = None,
) -> PredictedChunk:
    """Predict from one observation.

    Args:
        model: in evaluation mode, on any device.
        processor: of the model.
        steps: as many as the model's window, oldest first; each with the model's cameras.
        instruction: in words.
        unnorm_key: dataset whose units the actions are in; None takes the only one.
        mode: how to predict, of heads that have more than one way.

    Raises:
        ValueError: a picture, depth, K or state is missing, or a key or mode is unknown.
    """
    key = processor.choose_statistics(unnorm_key)
    inputs = processor(
        **observation_inputs(
            [tuple(steps)], processor.layout, model_depth_input(model.config), ["the observation"]
        ),
        text=[instruction],
        unnorm_key=key,
    )
    tensors = {n: t.to(model.device) for n, t in inputs.items() if isinstance(t, torch.Tensor)}
    head = model.action_head
    mapped = head is not None and head.has_maps
    asked = {"maps": True} if mapped else {}
    found = model.predict(tensors, mode=mode, grid=processor.grid, **asked)
    statistics = ActionStatistics.from_dict(processor.statistics[key])
    normalised = found.actions[0].double().cpu().numpy()
    actions = np.asarray(unnormalise(normalised, statistics), np.float64)
    spread = None
    if found.spread is not None:
        apart = found.spread[0].double().cpu().numpy()
        spread = np.abs(unnormalise(normalised + apart, statistics) - actions)
    rates: Mapping[str, float] = processor.settings.get(CONTROL_HZ) or {}
    space = processor.grid.action_space
    return PredictedChunk(
        actions=actions,
        spread=spread,
        heat=_heat(head, found.chances or {}, statistics) if mapped else {},
        space=space,
        unnorm_key=key,
        control_hz=rates.get(key, space.control_hz),
        head="grid_tokens" if head is None else head.kind,
    )


def _heat(
    head: Any, chances: Mapping[str, torch.Tensor], statistics: ActionStatistics
) -> dict[str, Heat]:
    found = {}
    for slot, cells in zip(head.mapped, head.cells, strict=True):
        points = np.zeros((cells.size, statistics.dim))
        points[:, slot.start : slot.stop] = cells.points()
        units = np.asarray(unnormalise(points, statistics), np.float64)
        chance = chances[slot.name][0].flatten(1).double().cpu().numpy()
        found[slot.name] = Heat(slot.start, units[:, slot.start : slot.stop], chance)
    return found
