"""SpatialVLA on transformers' own Gemma 2, SigLIP and ZoeDepth, by composition.

A picture becomes SigLIP patch features plus an Ego3D term, a linear projection takes them to the
language model, and Gemma 2 continues the prompt with action tokens whose embeddings are a table of
their own. Attribute names are the released ones, so released checkpoints load without key tables.

Shape letters: B batch, T tokens, N views (cameras times steps; the released model has one and no
such axis), P patches, D hidden size, V vocabulary, S image side, L label rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Cache,
    Gemma2ForCausalLM,
    SiglipVisionModel,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from ..actions.grid import ActionGrid
from ..depth.zoe import PerImageZoeDepth, beside, estimate_depth, mark
from ..heads.chunk_decoder import TokenWriter
from ..heads.decoding import checked_prompt, greedy
from ..heads.gemma_layers import why_not_direct
from ..heads.grid_tokens import GridTokens
from ..heads.one_pass import placeholder_states
from ..heads.protocol import ActionHead, Prediction
from ..heads.registry import build_head
from .attention import (
    check_kernel,
    masks_and_positions,
    refuse_kernel,
    suffix_from_ids,
)
from .configuration_spatialvla import SpatialVLAConfig
from .ego3d import Ego3DPositionEmbedding
from .generation import TokenGenerationMixin
from .loading import CheckpointLoading
from .observation import (
    ConvStem,
    MultiModalProjector,
    ObservationTokens,
    merged,
    single_views,
)


@dataclass
class SpatialVLAOutput(ModelOutput):
    """What a forward pass returns; hidden_states and attentions are Gemma 2's, on request."""

    loss: Tensor | None = None  # of the head, over label tokens or actions
    logits: Tensor | None = None  # (B, T, V), or fewer rows as `logits_to_keep` asks
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None  # (B, P, D), as the language model gets them
    metrics: dict[str, Tensor] | None = None  # beside the loss, of heads with weights of their own
    states: Tensor | None = None  # (B, R, D), what such a head has read
    debug: dict[str, Tensor] | None = None  # by the names of the golden data, on request


class SpatialVLAForConditionalGeneration(CheckpointLoading, PreTrainedModel, TokenGenerationMixin):
    """Picture, instruction and camera in; action tokens out."""

    config_class = SpatialVLAConfig
    base_model_prefix = ""
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["Gemma2DecoderLayer", "SiglipEncoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = False
    _supports_sdpa = False
    _supports_flex_attn = True
    _can_compile_fullgraph = False

    def __init__(self, config: SpatialVLAConfig) -> None:
        refuse_kernel(config.text_config._attn_implementation)
        super().__init__(config)
        config.check()
        if config.action_chunk_size is None:
            config.action_chunk_size = 4
        kernel = config.text_config._attn_implementation or "eager"
        config.text_config._attn_implementation = kernel
        vision, text = config.vision_config, config.text_config
        self.vision_tower = SiglipVisionModel(vision)
        if config.vision_stem == "conv":
            self.vision_tower.embeddings.patch_embedding = ConvStem(
                vision.num_channels, vision.hidden_size, vision.patch_size
            )
        self.multi_modal_projector = MultiModalProjector(vision.hidden_size, text.hidden_size)
        self.language_model = Gemma2ForCausalLM(text)
        if config.use_vision_zoe:
            if config.vision_zoe_config is not None:
                vote = config.compatibility == "released"
                self.vision_zoe_model = PerImageZoeDepth(config.vision_zoe_config, vote)
                self.vision_zoe_model.requires_grad_(False)
            self.position_embedding_3d = Ego3DPositionEmbedding(
                config.ego3d_patch_reso, config.n_freqs, vision
            )
        # An ablation may load a checkpoint that holds more than it uses.
        parts = ("vision_zoe_model", "position_embedding_3d")
        unused = [rf"^{part}\." for part in parts if not hasattr(self, part)]
        self._keys_to_ignore_on_load_unexpected = unused or None
        if config.use_spatial_token:
            self.spatial_embed_tokens = nn.Embedding(config.spatial_token_num, text.hidden_size)
        # The head's action rows, while they are trained apart from it; see `action_tables.py`.
        self.action_head_rows: nn.Embedding | None = None
        if config.observes_more:
            self.observation_tokens = ObservationTokens(
                config.num_cameras, config.observation_window, config.proprio_dim, text.hidden_size
            )
        self.action_grid: ActionGrid | None = None  # what its tokens mean, where that is known
        self.post_init()
        self.action_head = self.new_head()  # whose layers have their own first numbers

    def new_head(self) -> ActionHead | None:
        """The head of the config from random numbers; None for grid tokens, the tables above."""
        config, size = self.config, self.config.text_config.hidden_size
        return build_head(config.action_head, size, config.action_chunk_size)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ObservationTokens) and hasattr(module, "view_embedding"):
            nn.init.zeros_(module.view_embedding)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Asked by peft; transformers renamed its own property and warns on this name."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    # ---------------------------------------------------------------- what it sees

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
        pixels, intrinsics, depth, poses = single_views(
            self.config, pixel_values, intrinsics, depth, camera_poses
        )
        given = mark(pixels)
        dtype, patches = self.geometry_dtype, self.vision_tower.embeddings.patch_embedding
        normalised = ((pixels.to(dtype) - 0.5) / 0.5).to(patches.weight.dtype)
        features = self.vision_tower(normalised).last_hidden_state
        if debug is not None:
            debug["vision"] = features
        if self.config.use_vision_zoe:
            if depth is None:  # beside SigLIP where there is a GPU
                depth = beside(given, lambda: self.depth_of(pixels))
            ego3d, points = self.position_embedding_3d.of_depth(depth, intrinsics, poses, dtype)
            if debug is not None:
                debug.update(depth=depth, xyz=points, ego3d=ego3d)
            if self.config.ego3d_rms_norm:
                features, ego3d = (F.rms_norm(x, x.shape[-1:]) for x in (features, ego3d))
            features = features + ego3d
        features = self.multi_modal_projector(features)
        return self.observation_tokens(features, proprio) if self.config.observes_more else features

    def depth_of(self, pixel_values: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B S S"]:
        """Depth in metres, estimated from the picture by this checkpoint's own ZoeDepth."""
        if self.config.vision_zoe_config is None:
            side = self.config.vision_config.image_size
            raise ValueError(
                "this checkpoint has no depth estimator (depth_source 'sensor'): pass depth (B, "
                f"{side}, {side}) in metres with every picture"
            )
        return estimate_depth(self.vision_zoe_model, pixel_values, self.geometry_dtype)

    @property
    def geometry_dtype(self) -> torch.dtype:
        """Of pixels, K, depth and Ego3D phases: float32, unless released numbers are asked for."""
        return self.dtype if self.config.compatibility == "released" else torch.float32

    # ---------------------------------------------------------------- picture and words, merged

    def get_input_embeddings(self) -> nn.Embedding:
        """The text embeddings (action tokens have their own: `spatial_embed_tokens`)."""
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the text embeddings."""
        self.language_model.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """The language model's head."""
        return self.language_model.lm_head

    def embed_inputs(
        self, input_ids: Int[Tensor, "B T"], **observation: Any
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B P D"] | None]:
        """Embeddings with the picture's features in place of image tokens, and those features.

        Args:
            input_ids: ids of the whole sequence.
            **observation: arguments of `get_image_features`; without pixel_values none are merged.
        """
        embeds = self.grid_tokens.embed(input_ids)
        if observation.get("pixel_values") is None:
            return embeds, None
        features = self.get_image_features(**observation)
        return merged(embeds, features, input_ids == self.config.image_token_index), features

    # ---------------------------------------------------------------- forward

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        pixel_values: Float[Tensor, "B 3 S S"] | Float[Tensor, "B N 3 S S"] | None = None,
        intrinsics: Float[Tensor, "B 3 3"] | Float[Tensor, "B N 3 3"] | None = None,
        depth: Float[Tensor, "B S S"] | Float[Tensor, "B N S S"] | None = None,
        camera_poses: Float[Tensor, "B N 4 4"] | None = None,
        proprio: Float[Tensor, "B W K"] | None = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        token_type_ids: Int[Tensor, "B T"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Literal["labels"] = 0,
        debug_outputs: bool = False,
        actions: Float[Tensor, "B K A"] | None = None,
        valid: Bool[Tensor, "B K A"] | None = None,
        **kwargs: Any,
    ) -> SpatialVLAOutput:
        """Logits and, with labels or actions, the loss.

        Args:
            input_ids: image tokens, prompt, and action tokens in training.
            pixel_values: RGB in [0, 1]; given with the prompt, not with later decoding steps.
            intrinsics: K in pixels of the S x S picture.
            depth: metres; None estimates it.
            camera_poses: camera to the reference camera's frame, metres.
            proprio: normalised proprioception of every step.
            attention_mask: 1 for real tokens, 0 for pads, over past and present.
            token_type_ids: 0 prefix, 1 suffix; read off the ids when not given.
            position_ids: counted from 1 over real tokens when not given.
            past_key_values: cache of earlier tokens.
            inputs_embeds: in place of input_ids (then images are not merged).
            labels: ids to predict, -100 where there is nothing to predict.
            use_cache: whether to return a cache; by default where there are no labels.
            logits_to_keep: 0 for all rows, n for the last n, "labels" for the rows that predict a
                label, as (L, V), which is all that training needs.
            debug_outputs: also return intermediate tensors.
            actions: normalised, what a head with weights of its own learns from; grid tokens learn
                from labels.
            valid: which numbers of the actions count; None for all.
            **kwargs: passed on to Gemma 2.
        """
        debug: dict[str, Tensor] | None = {} if debug_outputs else None
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        features = None
        if inputs_embeds is None:
            inputs_embeds, features = self.embed_inputs(
                input_ids,
                pixel_values=pixel_values,
                intrinsics=intrinsics,
                depth=depth,
                camera_poses=camera_poses,
                proprio=proprio,
                debug=debug,
            )
            if token_type_ids is None:
                token_type_ids = suffix_from_ids(input_ids, *self.config.action_ids)
        if debug is not None:
            scale = torch.tensor(self.grid_tokens.scale, dtype=inputs_embeds.dtype)
            parts = {"inputs_embeds": inputs_embeds, "image_features": features}
            debug.update({n: part / scale for n, part in parts.items() if part is not None})
        learns = labels is not None or actions is not None
        head = self.action_head if learns else None
        if head is not None:
            head.check_actions(actions, valid)
            inputs_embeds, attention_mask, token_type_ids = head.lengthened(
                inputs_embeds, attention_mask, token_type_ids
            )
        outputs = self.read(
            inputs_embeds,
            attention_mask,
            token_type_ids,
            past_key_values,
            position_ids=position_ids,
            # Training reads no cache, and filling one copies keys and values.
            use_cache=False if use_cache is None and learns else use_cache,
            **kwargs,
        )
        hidden, metrics, logits, states = outputs.last_hidden_state, None, None, None
        if debug is not None:
            debug["final_norm"] = hidden
        if head is None:
            loss, logits = self.grid_tokens.loss_and_logits(
                hidden, labels, logits_to_keep, self.config.ignore_index
            )
        else:
            states = head.states(hidden, attention_mask, token_type_ids)
            loss, metrics = head.loss(states, actions, valid)
        return SpatialVLAOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features,
            metrics=metrics,
            states=states,
            debug=debug,
        )

    def read(
        self,
        embeds: Float[Tensor, "B T D"],
        attention_mask: Tensor | dict | None,
        token_type_ids: Int[Tensor, "B T"] | None,
        past: Cache | None = None,
        *,
        position_ids: Int[Tensor, "B T"] | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """The language model without its head; arguments as in `forward`."""
        check_kernel(self.language_model, embeds)
        order = masks_and_positions(
            self.config, embeds, attention_mask, token_type_ids, past, position_ids
        )
        return self.language_model.model(
            inputs_embeds=embeds, past_key_values=past, **order, **kwargs
        )

    # ---------------------------------------------------------------- actions

    @property
    def grid_tokens(self) -> GridTokens:
        """The tables of the action tokens as they are now: of the base, resized, or adapted."""
        config = self.config
        return GridTokens(
            text=self.get_input_embeddings(),
            lm_head=self.language_model.lm_head,
            spatial=self.spatial_embed_tokens if config.use_spatial_token else None,
            apart=self.action_head_rows,
            tied=config.tie_action_head,
            begin=config.action_token_begin_idx,
            count=config.spatial_token_num,
            cap=config.text_config.final_logit_softcapping,
            scale=config.text_config.hidden_size**0.5,
        )

    @property
    def token_writer(self) -> TokenWriter:
        """What of this model writes a chunk of action tokens."""
        return TokenWriter(
            self.grid_tokens,
            self.language_model.model,
            self.config.action_slots * self.config.action_chunk_size,
            self.config.prefix_mask == "bidirectional",
            self.__dict__,
        )

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor, past: Cache | None = None, **seen: Any
    ) -> Float[Tensor, "B T D"]:
        """Of a prompt, or of what follows a cache; `seen` goes to `get_image_features`."""
        embeds, _ = self.embed_inputs(input_ids, **seen)
        types, use_cache = suffix_from_ids(input_ids, *self.config.action_ids), past is not None
        return self.read(embeds, attention_mask, types, past, use_cache=use_cache).last_hidden_state

    @torch.no_grad()
    def predict_action(self, inputs: dict[str, Tensor]) -> Int[Tensor, "B N"]:
        """Greedy action tokens, N = slots * action_chunk_size, each among the ids of its slot.

        Inputs are what the processor returns for a picture and an instruction (no labels);
        `processor.decode_actions` turns the absolute ids into robot actions.
        """
        if self.action_head is not None:
            raise ValueError(f"head {self.action_head.kind!r} has no tokens: use predict_actions")
        refuse_kernel(self.language_model.config._attn_implementation)
        sharded = any(base.__name__ == "FSDPModule" for base in type(self).__mro__)
        return greedy(self.token_writer, inputs, self.embed_inputs, self.hidden_states, not sharded)

    @torch.no_grad()
    def predict(
        self,
        inputs: dict[str, Tensor],
        *,
        mode: str | None = None,
        grid: ActionGrid | None = None,
        **asked: Any,
    ) -> Prediction:
        """A chunk of NORMALISED actions by the model's own head, and how sure it is of them.

        Inputs are as in `predict_action`; `mode` is for heads that have more than one way; `grid`
        says what grid tokens mean, None takes that of the checkpoint's processor; `asked` is for
        heads that have more to tell, e.g. maps=True of `voxel_heatmap`.
        """
        if self.action_head is None:
            ids = self.predict_action(inputs)
            return Prediction(self.grid_tokens.actions(ids, grid or self.action_grid, mode))
        self.action_head.check_mode(mode)
        return self.action_head.predict(self.head_states(inputs), mode, **asked)

    @torch.no_grad()
    def head_states(self, inputs: dict[str, Tensor]) -> Float[Tensor, "B R D"]:
        """What a head with weights of its own reads of prompts, as `predict` takes them."""
        head = self.action_head
        prompt = checked_prompt(inputs, self.config.action_token_begin_idx)
        mask = prompt.pop("attention_mask")
        types = torch.zeros_like(prompt["input_ids"])
        asking = head.lengthened(self.embed_inputs(**prompt)[0], mask, types)
        text, whole = self.language_model.model, self.config.prefix_mask == "bidirectional"
        if head.parallel and why_not_direct(text) is None:
            return placeholder_states(text, *asking[:2], head.reads, whole, self.__dict__).clone()
        hidden = self.read(*asking, use_cache=False).last_hidden_state
        return head.states(hidden, *asking[1:])

    def predict_actions(
        self, inputs: dict[str, Tensor], *, mode: str | None = None, grid: ActionGrid | None = None
    ) -> Float[Tensor, "B K A"]:
        """The actions of `predict`; see `processor.to_robot_units`."""
        return self.predict(inputs, mode=mode, grid=grid).actions


AutoModel.register(SpatialVLAConfig, SpatialVLAForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(
    SpatialVLAConfig, SpatialVLAForConditionalGeneration, exist_ok=True
)
