"""Configuration of SpatialVLA: the released fields, and what this toolkit adds to them.

A released checkpoint stores only the first group below. The second group holds choices that the
released code left to side effects (the mask to the attention kernel, the depth vote to the batch)
or does not have (a convolutional stem, a tied action head); its defaults are the released model.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, Literal

from transformers import AutoConfig, Gemma2Config, SiglipVisionConfig, ZoeDepthConfig
from transformers.configuration_utils import PreTrainedConfig

RELEASED_ACTION_TOKENS = (4096, 4096, 2)


class SpatialVLAConfig(PreTrainedConfig):
    """Sizes and choices of a `SpatialVLAForConditionalGeneration`.

    Released fields:
        vision_config, text_config, vision_zoe_config: SigLIP, Gemma 2 and ZoeDepth.
        image_token_index: id of `<image>`.
        action_token_begin_idx: id of the first action token.
        spatial_token_num: number of action tokens.
        ego3d_patch_reso: points per patch side; must divide the patch size.
        n_freqs: frequency bands of the Ego3D encoding.
        use_vision_zoe: whether Ego3D is added to the visual features.
        use_spatial_token: whether action tokens are embedded by a table of their own.

    Added fields:
        action_chunk_size: actions per prediction (released checkpoints keep it in the processor).
        action_token_counts: tokens of each slot of an action, in order: translation, rotation and
            gripper of one arm; six numbers for two arms.
        prefix_mask: "bidirectional" lets image and prompt see each other whole, "causal" does not.
        compatibility: "ours", or "released" to restore released numbers that are known to be wrong:
            pads visible in training, one depth domain per batch, geometry in the model's dtype.
        depth_source: "zoe" estimates depth when none is given; "sensor" makes depth an input that
            must be given, and builds no ZoeDepth.
        vision_stem: "patch" is SigLIP's single convolution; "conv" a stack of stride-2 ones, which
            learns from few pictures when nothing is pre-trained.
        ego3d_rms_norm: normalise visual features and Ego3D term to unit RMS before their sum.
        action_head: {"kind": ..., "space": ..., SETTING: ...} of a head with weights of its own
            (`heads/registry.py`); None is the released one, grid tokens.
        tie_action_head: the head's rows of action tokens are the spatial table itself.
        num_cameras: pictures per step; the first camera's frame is the reference for Ego3D.
        observation_window: steps that are seen, the present one included.
        proprio_dim: numbers of proprioception per step, as one token; None for none.
        frozen_parameters: names, or their beginnings, that full training leaves as they are unless
            its recipe says otherwise (`train.freeze`); a fresh base names its text embeddings.
    """

    model_type = "spatialvla"
    sub_configs = {  # noqa: RUF012 - a class attribute by transformers' contract
        "text_config": Gemma2Config,
        "vision_config": SiglipVisionConfig,
        "vision_zoe_config": ZoeDepthConfig,
    }
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    attribute_map = {"image_token_id": "image_token_index"}  # noqa: RUF012

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_zoe_config: dict | PreTrainedConfig | None = None
    image_token_index: int = 257152
    action_token_begin_idx: int = 257153
    spatial_token_num: int = 8194
    ego3d_patch_reso: int = 2
    n_freqs: int = 8
    use_vision_zoe: bool = True
    use_spatial_token: bool = True
    projection_dim: int | None = None
    hidden_size: int | None = None
    ignore_index: int = -100
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | None = 1

    action_chunk_size: int | None = None
    action_token_counts: tuple[int, ...] | list[int] | None = None
    prefix_mask: Literal["bidirectional", "causal"] = "bidirectional"
    compatibility: Literal["ours", "released"] = "ours"
    depth_source: Literal["zoe", "sensor"] = "zoe"
    vision_stem: Literal["patch", "conv"] = "patch"
    ego3d_rms_norm: bool = False
    action_head: dict[str, Any] | None = None
    tie_action_head: bool = False
    num_cameras: int = 1
    observation_window: int = 1
    proprio_dim: int | None = None
    frozen_parameters: tuple[str, ...] | list[str] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the sub-configurations and refuse sizes that cannot work together."""
        if self.text_config is None:  # transformers compares a config with the default one
            end = self.action_token_begin_idx + self.spatial_token_num
            self.text_config = {"vocab_size": end, "tie_word_embeddings": False}
        self.text_config = _build(Gemma2Config, self.text_config)
        self.vision_config = _build(SiglipVisionConfig, self.vision_config, vision_use_head=False)
        needs_zoe = self.use_vision_zoe or self.vision_zoe_config is not None
        needs_zoe = needs_zoe and self.depth_source == "zoe"
        self.vision_zoe_config = (
            _build(ZoeDepthConfig, self.vision_zoe_config, num_patch_transformer_layers=4)
            if needs_zoe
            else None
        )
        self.text_config.num_image_tokens = self.num_image_tokens
        # The head of a released checkpoint is its own matrix although the top level says 'tied'.
        self.tie_word_embeddings = False
        self.projection_dim = self.text_config.hidden_size
        self.hidden_size = self.text_config.hidden_size
        if self.action_token_counts is None and self.spatial_token_num == sum(
            RELEASED_ACTION_TOKENS
        ):
            self.action_token_counts = RELEASED_ACTION_TOKENS
        if self.action_token_counts is not None:
            self.action_token_counts = list(self.action_token_counts)
        self.frozen_parameters = list(self.frozen_parameters)
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = False
        self.check()

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens per image."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def num_views(self) -> int:
        """Pictures per prompt: steps of the window times cameras."""
        return self.num_cameras * self.observation_window

    @property
    def action_ids(self) -> tuple[int, int]:
        """Id of the first action token, and their number."""
        return self.action_token_begin_idx, self.spatial_token_num

    @property
    def action_slots(self) -> tuple[slice, ...]:
        """Rows of each slot's tokens, in the order of an action, counted from the first token.

        One arm has three slots: translation, rotation, gripper. Their number is the number of
        tokens per action.
        """
        if self.action_token_counts is None:
            raise ValueError(
                f"the config does not say how its {self.spatial_token_num} action tokens divide "
                "into slots, such as translation, rotation and gripper; set action_token_counts"
            )
        ends = list(accumulate(self.action_token_counts, initial=0))
        return tuple(slice(start, stop) for start, stop in pairwise(ends))

    @property
    def observes_more(self) -> bool:
        """Whether a prompt holds more than the one picture of the released model."""
        return self.num_views > 1 or self.proprio_dim is not None

    def check(self) -> None:
        """ValueError on sizes that cannot work together; overrides at loading come after init."""
        if self.depth_source == "sensor":
            self.vision_zoe_config = None
        patch = self.vision_config.patch_size
        if self.ego3d_patch_reso < 1 or patch % self.ego3d_patch_reso:
            divisors = [d for d in range(1, patch + 1) if patch % d == 0]
            raise ValueError(
                f"ego3d_patch_reso {self.ego3d_patch_reso} does not divide the patch size {patch}; "
                f"use one of {divisors}"
            )
        if self.vision_config.image_size % patch:
            raise ValueError(
                f"image size {self.vision_config.image_size} is not a multiple of the patch size "
                f"{patch}; Ego3D needs patches that tile the image"
            )
        counts = self.action_token_counts
        if counts is not None and (
            not counts or min(counts) < 1 or sum(counts) != self.spatial_token_num
        ):
            raise ValueError(
                f"action_token_counts {list(counts)} must be positive numbers, one per token of an "
                "action (translation, rotation, gripper of one arm), that add up to "
                f"spatial_token_num {self.spatial_token_num}"
            )
        least = {"num_cameras": 1, "observation_window": 1, "proprio_dim": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} is {value}; it must be at least {low}")
        end = self.action_token_begin_idx + self.spatial_token_num
        if end > self.text_config.vocab_size:
            raise ValueError(
                f"action tokens {self.action_token_begin_idx}..{end - 1} do not fit the vocabulary "
                f"of {self.text_config.vocab_size}; grow text_config.vocab_size to at least {end}"
            )


def _build(
    cls: type[PreTrainedConfig], value: dict | PreTrainedConfig | None, **defaults: Any
) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    return cls(**{**defaults, **{k: v for k, v in (value or {}).items() if k != "model_type"}})


AutoConfig.register("spatialvla", SpatialVLAConfig, exist_ok=True)
