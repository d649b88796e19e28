"""From samples to model inputs: normalise actions, pick the camera, call the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..actions.normalise import ActionStatistics, normalise
from ..data.sample import Sample
from ..models.processing_spatialvla import SpatialVLAProcessor


class Collator:
    """Samples to a batch that the model trains on.

    Args:
        processor: knows every dataset's statistics under `Sample.dataset`.
        camera: which camera slot the model looks through.
        depth: "sensor" hands the sample's depth to the model, "estimate" leaves it to ZoeDepth.
        with_actions: False makes prompts, for prediction.
    """

    def __init__(
        self,
        processor: SpatialVLAProcessor,
        camera: str,
        depth: Literal["sensor", "estimate"],
        *,
        with_actions: bool = True,
    ) -> None:
        self.processor = processor
        self.camera = camera
        self.depth = depth
        self.with_actions = with_actions
        self.statistics = {
            name: ActionStatistics.from_dict(entry) for name, entry in processor.statistics.items()
        }

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """One batch; a missing image, depth or K raises and names the sample."""
        actions = None
        if self.with_actions:
            actions = np.stack([normalise(s.actions, self.statistics[s.dataset]) for s in samples])
        inputs = self.processor(
            images=[self._of(s, "images", s.images) for s in samples],
            text=[s.instruction for s in samples],
            intrinsic=[self._of(s, "intrinsics", s.intrinsics) for s in samples],
            depth=(
                [self._of(s, "depth", s.depth or {}) for s in samples]
                if self.depth == "sensor"
                else None
            ),
            suffix_actions=actions,
        )
        return {k: v for k, v in inputs.items() if k != "actions" and isinstance(v, torch.Tensor)}

    def _of(self, sample: Sample, what: str, values: dict[str, Any]) -> Any:
        if self.camera not in values:
            cures = {
                "images": "choose another data.camera, or filter such steps",
                "depth": "set data.depth: estimate to use ZoeDepth",
                "intrinsics": "put intrinsics for this camera into the dataset's card",
            }
            raise ValueError(
                f"{sample.dataset}, episode {sample.episode}, step {sample.step} has no {what} of "
                f"camera {self.camera!r} (it has {sorted(values)}); {cures[what]}"
            )
        return values[self.camera]
