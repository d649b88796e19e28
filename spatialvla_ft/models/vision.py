"""From pictures, depth and cameras to the observation tokens of a prompt.

Shape letters: B batch, N views (cameras times steps; the released model has one and no such axis),
P patches, S image side, W steps, T observation tokens, D hidden size of the language model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from ..depth.zoe import estimate_depth
from ..heads.cuda_graphs import beside, mark
from .ego3d import in_reference_frame, patch_points


class SpatialVision(PreTrainedModel):
    """SigLIP features plus Ego3D, projected: the part of the model that sees."""

    def get_image_features(
        self,
        pixel_values: Float[Tensor, "B 3 S S"] | Float[Tensor, "B N 3 S S"],
        intrinsics: Float[Tensor, "B 3 3"] | Float[Tensor, "B N 3 3"] | None = None,
        depth: Float[Tensor, "B S S"] | Float[Tensor, "B N S S"] | None = None,
        camera_poses: Float[Tensor, "B N 4 4"] | None = None,
        proprio: Float[Tensor, "B W K"] | None = None,
        debug: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Tokens of the observation: visual features plus Ego3D, projected.

        Args:
            pixel_values: RGB in [0, 1]; views of one step after the other, oldest first.
            intrinsics: K in pixels of exactly this picture; needed where Ego3D is on.
            depth: metres, 0 or NaN where unknown; None estimates it with ZoeDepth.
            camera_poses: camera to reference frame, the identity for a view that stays in its own;
                None for all in their own.
            proprio: normalised; needed where the config has `proprio_dim`.
            debug: collects intermediate tensors when given.
        """
        for name, given, meant in (
            ("pixel_values", pixel_values, "floats in [0, 1]"),
            ("depth", depth, "metres, floats"),
        ):
            if given is not None and not given.is_floating_point():
                raise ValueError(
                    f"{name} must be {meant}, as the processor returns them, got {given.dtype}"
                )
        views = self.config.num_views
        if pixel_values.ndim == 5:
            if pixel_values.shape[1] != views:
                raise ValueError(
                    f"pixel_values have {pixel_values.shape[1]} views, the model takes {views} "
                    f"({self.config.observation_window} steps of {self.config.num_cameras} cameras)"
                )
            pixel_values = pixel_values.flatten(0, 1)
        elif views > 1:
            raise ValueError(
                f"this model takes {views} views per prompt: pixel_values must be (B, {views}, 3, "
                f"S, S), got {tuple(pixel_values.shape)}"
            )
        features = self._see(
            pixel_values,
            None if intrinsics is None else intrinsics.reshape(-1, 3, 3),
            None if depth is None else depth.flatten(0, -3),
            None if camera_poses is None else camera_poses.reshape(-1, 4, 4),
            debug,
        )
        if not self.config.observes_more:
            return features
        return self.observation_tokens(features, proprio)

    def _see(
        self,
        pixels: Float[Tensor, "B 3 S S"],
        intrinsics: Float[Tensor, "B 3 3"] | None,
        depth: Float[Tensor, "B S S"] | None,
        poses: Float[Tensor, "B 4 4"] | None,
        debug: dict[str, Tensor] | None,
    ) -> Float[Tensor, "B P D"]:
        """Projected features of single views."""
        given = mark(pixels)
        patch_weight = self.vision_tower.embeddings.patch_embedding.weight
        dtype = self.geometry_dtype
        normalised = ((pixels.to(dtype) - 0.5) / 0.5).to(patch_weight.dtype)
        features = self.vision_tower(normalised).last_hidden_state
        if debug is not None:
            debug["vision"] = features
        if self.config.use_vision_zoe:
            if depth is None:  # beside SigLIP where there is a GPU
                depth = beside(given, lambda: self.depth_of(pixels))
            if intrinsics is None:
                raise ValueError(
                    "Ego3D needs the camera's intrinsics: pass intrinsics (B, 3, 3), in pixels of "
                    "the model's input picture, as the processor returns them"
                )
            vision = self.config.vision_config
            points = patch_points(
                depth,
                intrinsics,
                vision.image_size,
                vision.patch_size,
                self.config.ego3d_patch_reso,
                dtype,
            )
            if poses is not None:
                points = in_reference_frame(points, poses)
            ego3d = self.position_embedding_3d(points, dtype)
            if debug is not None:
                debug.update(depth=depth, xyz=points, ego3d=ego3d)
            if self.config.ego3d_rms_norm:
                features = _unit_rms(features) + _unit_rms(ego3d)
            else:
                features = features + ego3d
        return self.multi_modal_projector(features)

    def depth_of(self, pixel_values: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B S S"]:
        """Depth in metres, estimated from the picture by this checkpoint's own ZoeDepth."""
        if self.config.vision_zoe_config is None:
            raise ValueError(
                "this checkpoint has no depth estimator (depth_source 'sensor'): pass depth (B, "
                f"{self.config.vision_config.image_size}, {self.config.vision_config.image_size}) "
                "in metres with every picture"
            )
        return estimate_depth(self.vision_zoe_model, pixel_values, self.geometry_dtype)

    @property
    def geometry_dtype(self) -> torch.dtype:
        """Of pixels, K, depth and Ego3D phases: float32, unless released numbers are asked for."""
        return self.dtype if self.config.compatibility == "released" else torch.float32


def _unit_rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])
