"""What a training run consists of, as `build` makes it and the loop uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..data.augment import Augment
from ..data.pictures import fit_step
from ..data.sample import Sample
from ..data.samples import SampleDataset
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.depth import SampleDepth
from ..policy.inputs import Collator
from .recipe import Recipe

if TYPE_CHECKING:
    from .depth_plan import DepthPlan


@dataclass
class Run:
    """Everything a training loop needs.

    Attributes:
        recipe: what was asked for.
        model: trainable; a peft model when the recipe has `lora`.
        processor: with the grid, statistics and intrinsics of this data.
        datasets: what is trained on, and `weights`, their shares of the batches.
        heldout: episodes kept for validation, per dataset; empty without a holdout.
        collate: samples to model inputs.
        augment: what training varies, or None.
        points: which places of things are supervised, of the samples' fields; none without
            `train.point_loss`.
        depth: gives samples estimated depth, before augmentation; None where they bring their own
            or the model estimates it.
        depth_plan: whether the depth of the model's own ZoeDepth is kept, and why; None where it is
            not asked.
        rows: spatial table and head rows before training (adapters need them to be loaded again).
        base_fingerprint: of the checkpoint that training started from; None for a new model.
        overrides: config fields that differ from the base's.
    """

    recipe: Recipe
    model: nn.Module
    processor: SpatialVLAProcessor
    datasets: list[SampleDataset]
    weights: list[float]
    heldout: list[SampleDataset]
    collate: Collator
    augment: Augment | None
    rows: dict[str, Tensor]
    base_fingerprint: str | None
    overrides: dict[str, Any]
    points: tuple[str, ...] = ()
    depth: SampleDepth | None = None
    depth_plan: DepthPlan | None = None

    def sample(self, dataset: SampleDataset, frame: int) -> Sample:
        """A sample as it is validated: whole, with the depth that this run uses."""
        found = dataset[frame]
        if self.depth is None:
            return found
        if self.depth.size is not None:  # depth of the picture that inference sees
            found = fit_step(found, self.depth.size, "fast")
        return self.depth(found)

    @property
    def spatialvla(self) -> SpatialVLAForConditionalGeneration:
        """The SpatialVLA model itself, inside or without a peft model."""
        return self.model.get_base_model() if self.recipe.lora else self.model
