"""From samples to model inputs: normalise actions, pick the cameras, call the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..actions.normalise import ActionStatistics, normalise
from ..data.sample import Observation, Sample
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.observation import ObservationLayout
from ..models.processing_spatialvla import SpatialVLAProcessor

DepthInput = Literal["sensor", "estimate"]

CURES = {
    "images": "choose other data.cameras, or filter such steps",
    "depth": "set data.depth: estimate to use ZoeDepth",
    "intrinsics": "put intrinsics for this camera into the dataset's card",
}


def takes_depth(config: SpatialVLAConfig) -> bool:
    """Whether depth, metres, is an input of the model rather than its own estimate."""
    return config.use_vision_zoe and config.vision_zoe_config is None


def model_depth_input(config: SpatialVLAConfig) -> DepthInput:
    """Where a model takes depth from when nothing else is said."""
    return "sensor" if takes_depth(config) else "estimate"


class Collator:
    """Samples to a batch that the model trains on.

    Args:
        processor: knows every dataset's statistics under `Sample.dataset`, and which cameras,
            steps and proprioception make a prompt.
        depth: "sensor" hands the sample's depth to the model, "estimate" leaves it to ZoeDepth.
        with_actions: False makes prompts, for prediction.
        as_tokens: whether actions follow the prompt as tokens, with labels; False gives `actions`
            (B, K, A), normalised, and `valid` of the same shape beside a prompt, which is what
            heads with weights of their own learn from.
        unnorm_key: statistics of all samples, where they are not those of their dataset.
    """

    def __init__(
        self,
        processor: SpatialVLAProcessor,
        depth: DepthInput,
        *,
        with_actions: bool = True,
        as_tokens: bool = True,
        unnorm_key: str | None = None,
    ) -> None:
        self.processor = processor
        self.depth: DepthInput = depth
        self.with_actions, self.as_tokens = with_actions, as_tokens
        self.unnorm_key = unnorm_key
        self.statistics = {
            name: ActionStatistics.from_dict(entry) for name, entry in processor.statistics.items()
        }

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """One batch; a missing image, depth or K raises and names the sample."""
        keys = [self.unnorm_key or s.dataset for s in samples]
        actions = None
        if self.with_actions:
            normalised = [
                normalise(s.actions, self.statistics[key])
                for s, key in zip(samples, keys, strict=True)
            ]
            # One action in fifty lies beyond q01 or q99 of its dimension, and is taken to the edge.
            actions = np.clip(np.stack(normalised), -1, 1)
        layout = self.processor.layout
        inputs = self.processor(
            **observation_inputs(
                [s.observations for s in samples],
                layout,
                self.depth,
                [f"{s.dataset}, episode {s.episode}, step {s.step}" for s in samples],
            ),
            text=[s.instruction for s in samples],
            unnorm_key=keys if layout.proprio_dim is not None else None,
            suffix_actions=actions if self.as_tokens else None,
        )
        batch = {k: v for k, v in inputs.items() if k != "actions" and isinstance(v, torch.Tensor)}
        if actions is not None and not self.as_tokens:
            valid = torch.as_tensor(np.stack([s.valid for s in samples]))
            batch["actions"] = torch.as_tensor(actions, dtype=torch.float32)
            batch["valid"] = valid[..., None].expand(actions.shape).contiguous()
        return batch


def observation_inputs(
    prompts: Sequence[Sequence[Observation]],
    layout: ObservationLayout,
    depth: DepthInput,
    places: Sequence[str],
) -> dict[str, Any]:
    """Arguments of the processor for the observations of each prompt, oldest step first.

    Args:
        prompts: `layout.window` observations each.
        layout: which cameras, and whether proprioception, make a prompt.
        depth: "sensor" takes the observations' depth along.
        places: where each prompt comes from, for errors.

    Raises:
        ValueError: an image, depth or K is missing, or there are fewer steps than the window.
    """
    for steps, place in zip(prompts, places, strict=True):
        if len(steps) != layout.window:
            raise ValueError(
                f"{place} comes with {len(steps)} step(s), the model sees {layout.window}: open "
                f"the dataset with window={layout.window}"
            )

    def views(what: str) -> list[list[Any]]:
        return [
            [_of(step, what, camera, place) for step in steps for camera in layout.cameras]
            for steps, place in zip(prompts, places, strict=True)
        ]

    inputs: dict[str, Any] = {"images": views("images"), "intrinsic": views("intrinsics")}
    if depth == "sensor":
        inputs["depth"] = views("depth")
    if layout.num_views > 1:
        unknown = np.full((4, 4), np.nan)
        inputs["extrinsics"] = [
            [step.extrinsics.get(camera, unknown) for step in steps for camera in layout.cameras]
            for steps in prompts
        ]
    if layout.proprio_dim is not None:
        for steps, place in zip(prompts, places, strict=True):
            if any(step.proprio is None for step in steps):
                raise ValueError(f"{place} has no proprioception, and the model reads it")
        inputs["proprio"] = np.stack([[step.proprio for step in steps] for steps in prompts])
    return inputs


def _of(step: Observation, what: str, camera: str, place: str) -> Any:
    values = getattr(step, what) or {}
    if camera not in values:
        raise ValueError(
            f"{place} has no {what} of camera {camera!r} (it has {sorted(values)}); {CURES[what]}"
        )
    return values[camera]
