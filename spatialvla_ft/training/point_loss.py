"""Supervise where one attention head looks: from the instruction to the thing that it names.

A small policy hardly ever finds by itself which word belongs to which patch; demonstrations seldom
need the word, and the look-up is a plateau of the optimisation. Where the data knows the place of
the named thing (`Sample.target_point`), one head of one layer is told: the attention A of every
token of the instruction to the patches p shall be s, the point spread bilinearly over its four
nearest patches, by the loss -sum_p s_p log(A_p + 1e-6). Every token, because the one that names the
colour needs nobody's help to find it; the others, of which the last one acts, follow. Nothing of it
is left in inference or in a checkpoint.

Shape letters: B batch, T tokens, N observation tokens, Q tokens of all instructions, C head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

from ..data.sample import Sample
from ..geometry.backprojection import patch_weights, project
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.observation import ObservationLayout
from .recipe import PointLoss, RecipeError

FLOOR = 1e-6
"""Added to attention before the logarithm, so that a head that looks away keeps a gradient."""

PREFIX = "point_weights."


@dataclass(frozen=True)
class PatchGrid:
    """How the patches of a model's pictures lie in its prompt.

    Attributes:
        image_size, patch_size: pixels.
        layout: views and steps of a prompt.
    """

    image_size: int
    patch_size: int
    layout: ObservationLayout

    @property
    def patches(self) -> int:
        """Patches of one view."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Observation tokens of a prompt."""
        return self.layout.num_tokens(self.patches)

    def weights(
        self, samples: Sequence[Sample], intrinsics: Float[Tensor, "B N 3 3"], field: str
    ) -> Float[Tensor, "B N"]:
        """Where each sample's point lies among its observation tokens; rows sum to 1, or are 0.

        The point is looked for in every camera of the present step, and spread evenly over those
        that show it. Whether something stands before it is not looked at.

        Args:
            samples: with extrinsics (camera to base) where they have the point.
            intrinsics: K of each view's square picture, as the processor returns them.
            field: "target_point" or "reference_point".

        Raises:
            ValueError: a sample has the point, but no pose of a camera.
        """
        found = torch.zeros(len(samples), self.tokens)
        newest = self.layout.num_tokens(self.patches) // self.layout.window
        first_view = (self.layout.window - 1) * len(self.layout.cameras)
        for row, sample in enumerate(samples):
            point = getattr(sample, field)
            if point is None:
                continue
            for k, camera in enumerate(self.layout.cameras):
                in_camera = torch.as_tensor(_in_camera(sample, point, camera, field))
                uv = project(in_camera[None], intrinsics[row, first_view + k][None])
                start = self.tokens - newest + k * self.patches
                found[row, start : start + self.patches] = patch_weights(
                    uv, self.image_size, self.patch_size
                )[0]
        return found / found.sum(-1, keepdim=True).clamp_min(1e-9)


@dataclass(frozen=True)
class PointCollator:
    """Batches with the places of points beside the model's inputs; may cross fork and spawn.

    Attributes:
        collate: samples to model inputs.
        grid: how the patches lie in the prompt.
        fields: which points.
    """

    collate: Callable[[Sequence[Sample]], dict[str, Tensor]]
    grid: PatchGrid
    fields: tuple[str, ...]

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Model inputs, and `point_weights.FIELD` (B, N) for every field."""
        batch = self.collate(samples)
        K = batch["intrinsics"]
        K_BN33 = K.unsqueeze(1) if K.ndim == 3 else K
        found = {PREFIX + f: self.grid.weights(samples, K_BN33, f) for f in self.fields}
        return {**batch, **found}


def without_points(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(what the model takes, places of the points by field)."""
    points = {n.removeprefix(PREFIX): t for n, t in batch.items() if n.startswith(PREFIX)}
    return {n: t for n, t in batch.items() if not n.startswith(PREFIX)}, points


def _in_camera(
    sample: Sample, point: Float[np.ndarray, 3], camera: str, field: str
) -> Float[np.ndarray, 3]:
    pose = sample.extrinsics.get(camera)
    if pose is None or not np.isfinite(pose).all():
        raise ValueError(
            f"{sample.dataset}, episode {sample.episode}, step {sample.step} has a {field}, but no "
            f"pose of camera {camera!r} to see it through; put extrinsics of this camera (to the "
            "robot's base, 4 x 4) into the dataset's card, or leave train.point_loss out"
        )
    rotation, position = pose[:3, :3], pose[:3, 3]
    return (rotation.T @ (np.asarray(point, np.float64) - position)).astype(np.float32)


def point_fields(settings: PointLoss | None) -> tuple[str, ...]:
    """Fields of a sample that a recipe's point loss needs."""
    if settings is None:
        return ()
    return ("target_point",) + ("reference_point",) * (settings.reference_head is not None)


def check_points(datasets: Sequence[Any], wanted: Sequence[str]) -> None:
    """Every dataset must have what the recipe's point loss asks for.

    Raises:
        RecipeError: it has not; says how to get it.
    """
    for dataset in datasets:
        missing = [field for field in wanted if field not in dataset.card.points]
        if missing:
            raise RecipeError(
                f"train.point_loss: {dataset.name} has no {' and no '.join(missing)}. Name the "
                f"column in its card ({missing[0]}: COLUMN; x, y, z in metres in the base frame), "
                "find the points in hindsight with `spatialvla-ft data annotate`, or leave "
                "train.point_loss out"
            )
        if wanted and not dataset.card.extrinsics:
            raise RecipeError(
                f"train.point_loss: {dataset.name} has no extrinsics, so its points cannot be seen "
                "in the picture; put the camera's pose into its card, extrinsics: {primary: COLUMN}"
            )


class PointWatch:
    """Reads one head's attention while the model runs, and makes the loss of it.

    Args:
        model: whose attention is read; its forward is not changed.
        settings: which layer and heads.

    Raises:
        RecipeError: there is no such layer or head.
    """

    def __init__(self, model: SpatialVLAForConditionalGeneration, settings: PointLoss) -> None:
        text = model.config.text_config
        layer = text.num_hidden_layers // 2 if settings.layer is None else settings.layer
        if not 0 <= layer < text.num_hidden_layers:
            raise RecipeError(
                f"train.point_loss.layer is {layer}; this model has layers 0 to "
                f"{text.num_hidden_layers - 1}"
            )
        self.heads = {"target_point": settings.head}
        if settings.reference_head is not None:
            self.heads["reference_point"] = settings.reference_head
        for head in self.heads.values():
            if not 0 <= head < text.num_attention_heads:
                raise RecipeError(
                    f"train.point_loss names head {head}; this model has heads 0 to "
                    f"{text.num_attention_heads - 1}"
                )
        if len(set(self.heads.values())) < len(self.heads):
            raise RecipeError("train.point_loss: head and reference_head must be two heads")
        self.model, self.weight = model, settings.weight
        self.attention = model.language_model.model.layers[layer].self_attn
        self.image_token = model.config.image_token_index
        self._batch: Mapping[str, Tensor] = {}
        self._sample: Int[Tensor, " Q"] | None = None
        self._seen: dict[str, Float[Tensor, "Q N"]] = {}

    @contextmanager
    def watching(self, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Read the attention of the passes inside; the batch has input_ids and masks."""
        self._batch, self._seen = batch, {}
        handle = self.attention.register_forward_pre_hook(self._look, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def loss(
        self, weights: Mapping[str, Float[Tensor, "B N"]]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Mean loss of a batch, and what share of the attention is right.

        A sample without a point counts 0, so that ranks and micro-batches add up to their batch.

        Args:
            weights: by field, as `PatchGrid.weights` makes them.

        Returns:
            the loss, and per field the attention of the last token of the prompt, the one that
            acts, on the point's patches, averaged over the samples that have a point.
        """
        assert self._sample is not None, "no pass was watched"
        total = torch.zeros((), device=self.model.device)
        hits: dict[str, float] = {}
        count = torch.bincount(self._sample)
        last = count.cumsum(0) - 1
        for field, wanted in weights.items():
            seen = self._seen[field]
            each = -(wanted[self._sample] * torch.log(seen + FLOOR)).sum(-1)
            total = total + (each / count[self._sample]).sum() / len(wanted)
            has = wanted.sum(-1) > 0
            if has.any():
                right = seen.detach()[last][has] * (wanted[has] > 0)
                hits[f"attention/{field}"] = float(right.sum(-1).mean())
        return total, hits

    def _look(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One head's attention, computed beside the layer whatever its kernel."""
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        length = self._batch["input_ids"].shape[1]  # a head's placeholders lie behind it
        hidden = hidden[:, :length]
        cos, sin = (part[:, :length] for part in kwargs["position_embeddings"])
        image = self._batch["input_ids"] == self.image_token
        prefix = self._batch["token_type_ids"] == 0
        real = prefix & (self._batch["attention_mask"] == 1)
        visible = prefix if self.model.config.compatibility == "released" else real
        sample, token = (real & ~image).nonzero(as_tuple=True)
        size, shared = module.head_dim, module.num_key_value_groups
        q_BHTC = module.q_proj(hidden).unflatten(-1, (-1, size)).transpose(1, 2)
        k_BKTC = module.k_proj(hidden).unflatten(-1, (-1, size)).transpose(1, 2)
        q_BHTC, k_BKTC = apply_rotary_pos_emb(q_BHTC, k_BKTC, cos, sin)
        self._sample = sample
        for field, head in self.heads.items():
            with torch.autocast(hidden.device.type, enabled=False):
                q_BTC, k_BTC = q_BHTC[:, head].float(), k_BKTC[:, head // shared].float()
                scores_BTT = (q_BTC @ k_BTC.transpose(-1, -2)) * module.scaling
                cap = module.attn_logit_softcapping
                if cap is not None:
                    scores_BTT = torch.tanh(scores_BTT / cap) * cap
                hidden_keys = ~visible.unsqueeze(1)
                scores_BTT = scores_BTT.masked_fill(hidden_keys, torch.finfo(scores_BTT.dtype).min)
                seen_BTT = torch.softmax(scores_BTT, -1)
            self._seen[field] = seen_BTT[sample, token][image[sample]].view(len(sample), -1)
