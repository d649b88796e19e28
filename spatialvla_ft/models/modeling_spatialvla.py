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
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Cache,
    Gemma2ForCausalLM,
    GenerationMixin,
    SiglipVisionModel,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from ..depth.zoe import PerImageMetricHeads, PerImageZoeDepth
from ..heads.decoding import greedy_actions
from .attention import attention_masks, check_kernel, refuse_kernel, suffix_from_ids
from .configuration_spatialvla import SpatialVLAConfig
from .ego3d import Ego3DPositionEmbedding
from .generation import PrefixGeneration
from .loading import CheckpointLoading
from .observation import ObservationTokens
from .stem import ConvStem
from .vision import SpatialVision


@dataclass
class SpatialVLAOutput(ModelOutput):
    """What a forward pass returns.

    Attributes:
        loss: mean cross entropy over the label tokens, when labels were given.
        logits: (B, T, V), or fewer rows as `logits_to_keep` asks.
        past_key_values: the cache, when one is used.
        hidden_states, attentions: of the language model, on request.
        image_hidden_states: (B, P, D) projected image features, as the language model gets them.
        debug: intermediate tensors by the names of the golden data, on request.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
    debug: dict[str, Tensor] | None = None


class MultiModalProjector(nn.Module):
    """One linear layer from the vision tower to the language model."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_size, hidden_size)

    def forward(self, features: Float[Tensor, "B P C"]) -> Float[Tensor, "B P D"]:
        """Projected features."""
        return self.linear(features)


class SpatialVLAForConditionalGeneration(
    CheckpointLoading, SpatialVision, PrefixGeneration, PreTrainedModel, GenerationMixin
):
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
                self.vision_zoe_model = PerImageZoeDepth(config.vision_zoe_config)
                self.vision_zoe_model.requires_grad_(False)
                head = self.vision_zoe_model.metric_head
                if isinstance(head, PerImageMetricHeads):
                    head.vote_over_batch = config.compatibility == "released"
            self.position_embedding_3d = Ego3DPositionEmbedding(
                config.ego3d_patch_reso**2, config.n_freqs, vision.hidden_size
            )
        if not config.use_vision_zoe or config.vision_zoe_config is None:
            # An ablation may load a checkpoint that holds more than it uses.
            self._keys_to_ignore_on_load_unexpected = [r"^vision_zoe_model\."]
            if not config.use_vision_zoe:
                self._keys_to_ignore_on_load_unexpected += [r"^position_embedding_3d\."]
        if config.use_spatial_token:
            self.spatial_embed_tokens = nn.Embedding(config.spatial_token_num, text.hidden_size)
        # The head's action rows, while they are trained apart from it; see `action_head.py`.
        self.action_head_rows: nn.Embedding | None = None
        if config.observes_more:
            self.observation_tokens = ObservationTokens(
                config.num_cameras, config.observation_window, config.proprio_dim, text.hidden_size
            )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ObservationTokens) and hasattr(module, "view_embedding"):
            nn.init.zeros_(module.view_embedding)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Asked by peft; transformers renamed its own property and warns on this name."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    # ---------------------------------------------------------------- embeddings and head

    def get_input_embeddings(self) -> nn.Embedding:
        """The text embeddings (action tokens have their own: `spatial_embed_tokens`)."""
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the text embeddings."""
        self.language_model.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """The language model's head."""
        return self.language_model.lm_head

    def embed_tokens(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Embeddings as Gemma's first layer gets them: text or spatial rows, times sqrt(D)."""
        table = self.get_input_embeddings()
        if not self.config.use_spatial_token:
            return table(input_ids)
        begin, count = self.config.action_token_begin_idx, self.config.spatial_token_num
        is_action = (input_ids >= begin) & (input_ids < begin + count)
        text = table(input_ids.masked_fill(is_action, 0))
        spatial = self.spatial_embed_tokens((input_ids - begin).clamp(0, count - 1))
        return torch.where(is_action.unsqueeze(-1), spatial * self._embed_scale(spatial), text)

    def embed_actions(self, rows: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Embeddings of action tokens, counted from the first action token, times sqrt(D)."""
        if not self.config.use_spatial_token:
            return self.get_input_embeddings()(rows + self.config.action_token_begin_idx)
        spatial = self.spatial_embed_tokens(rows)
        return spatial * self._embed_scale(spatial)

    def embed_inputs(
        self, input_ids: Int[Tensor, "B T"], **observation: Any
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B P D"] | None]:
        """Embeddings with the picture's features in place of image tokens, and those features.

        Args:
            input_ids: ids of the whole sequence.
            **observation: arguments of `get_image_features`; without pixel_values none are merged.
        """
        embeds = self.embed_tokens(input_ids)
        if observation.get("pixel_values") is None:
            return embeds, None
        features = self.get_image_features(**observation)
        return self._merge(input_ids, embeds, features), features

    def _embed_scale(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.text_config.hidden_size**0.5, dtype=like.dtype)

    def head_rows(self, rows: slice) -> Float[Tensor, "R D"]:
        """Weights of the head for a slice of the action tokens (counted from the first one)."""
        if self.config.tie_action_head:
            return self.spatial_embed_tokens.weight[rows]
        if self.action_head_rows is not None:
            return self.action_head_rows.weight[rows]
        begin = self.config.action_token_begin_idx
        return self.language_model.lm_head.weight[begin + rows.start : begin + rows.stop]

    def soft_cap(self, logits: Tensor) -> Tensor:
        """Gemma 2's bound on the logits."""
        cap = self.config.text_config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def head(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Logits over the whole vocabulary."""
        begin, count = self.config.action_token_begin_idx, self.config.spatial_token_num
        if not self.config.tie_action_head:
            logits = self.language_model.lm_head(hidden)
            if self.action_head_rows is not None:
                own = F.linear(hidden, self.action_head_rows.weight)
                logits = torch.cat((logits[..., :begin], own, logits[..., begin + count :]), -1)
            return self.soft_cap(logits)
        weight = self.language_model.lm_head.weight
        rows = (weight[:begin], self.spatial_embed_tokens.weight, weight[begin + count :])
        return self.soft_cap(F.linear(hidden, torch.cat(rows)))

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
        **kwargs: Any,
    ) -> SpatialVLAOutput:
        """Logits and, with labels, the loss.

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
            **kwargs: passed on to Gemma 2.
        """
        debug: dict[str, Tensor] | None = {} if debug_outputs else None
        if use_cache is None and labels is not None:
            use_cache = False  # training reads no cache, and filling one copies keys and values
        outputs, image_features = self._run(
            input_ids=input_ids,
            pixel_values=pixel_values,
            intrinsics=intrinsics,
            depth=depth,
            camera_poses=camera_poses,
            proprio=proprio,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            debug=debug,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss, logits = self.loss_and_logits(hidden, labels, logits_to_keep)
        return SpatialVLAOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            debug=debug,
        )

    def last_hidden(self, **inputs: Any) -> Float[Tensor, "B D"]:
        """Hidden state of the last token, before the head; arguments as in `forward`."""
        outputs, _ = self._run(**inputs, use_cache=True)
        return outputs.last_hidden_state[:, -1]

    def _run(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        intrinsics: Tensor | None = None,
        depth: Tensor | None = None,
        camera_poses: Tensor | None = None,
        proprio: Tensor | None = None,
        attention_mask: Tensor | dict | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        debug: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[ModelOutput, Tensor | None]:
        """Everything before the head: the language model's output and the image features."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        image_features = None
        if inputs_embeds is None:
            inputs_embeds, image_features = self.embed_inputs(
                input_ids,
                pixel_values=pixel_values,
                intrinsics=intrinsics,
                depth=depth,
                camera_poses=camera_poses,
                proprio=proprio,
                debug=debug,
            )
        if debug is not None:
            scale = self._embed_scale(inputs_embeds)
            debug["inputs_embeds"] = inputs_embeds / scale
            if image_features is not None:
                debug["image_features"] = image_features / scale

        check_kernel(self.language_model, inputs_embeds)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = _positions(inputs_embeds, attention_mask, past)
        if past > 0:
            token_type_ids = None
        elif token_type_ids is None and input_ids is not None:
            token_type_ids = suffix_from_ids(
                input_ids, self.config.action_token_begin_idx, self.config.spatial_token_num
            )
        if not isinstance(attention_mask, dict):
            attention_mask = attention_masks(
                self.config, inputs_embeds, attention_mask, token_type_ids, past_key_values
            )
        outputs = self.language_model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        if debug is not None:
            debug["final_norm"] = outputs.last_hidden_state
        return outputs, image_features

    def _merge(self, input_ids: Tensor, embeds: Tensor, features: Tensor) -> Tensor:
        is_image = input_ids == self.config.image_token_index
        have, need = int(is_image.sum()), features.shape[0] * features.shape[1]
        if have != need:
            raise ValueError(
                f"the prompt holds {have} <image> tokens, the observations make {need} features "
                f"({features.shape[0]} x {features.shape[1]}); build the inputs with the processor"
            )
        return embeds.masked_scatter(is_image.unsqueeze(-1), features.to(embeds.dtype))

    def loss_and_logits(
        self, hidden: Tensor, labels: Tensor | None, logits_to_keep: int | Literal["labels"]
    ) -> tuple[Tensor | None, Tensor]:
        """From hidden states (B, T, D) to loss and logits; arguments as in `forward`."""
        if labels is None:
            if logits_to_keep == "labels":
                raise ValueError("logits_to_keep='labels' needs labels")
            return None, self.head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        predicts = labels[:, 1:] != self.config.ignore_index
        targets = labels[:, 1:][predicts]
        if targets.numel() == 0:
            raise ValueError(
                f"all labels are {self.config.ignore_index}: there is nothing to learn from this "
                "batch; pass suffix_actions to the processor"
            )
        if logits_to_keep == "labels":
            rows = logits = self.head(hidden[:, :-1][predicts])
        else:
            logits = self.head(hidden)
            rows = logits[:, :-1][predicts]
            logits = logits[:, -logits_to_keep:] if logits_to_keep else logits
        return F.cross_entropy(rows.float(), targets), logits

    # ---------------------------------------------------------------- decoding

    @torch.no_grad()
    def predict_action(self, inputs: dict[str, Tensor]) -> Int[Tensor, "B N"]:
        """Greedy action tokens, N = slots * action_chunk_size, each among the ids of its slot.

        Args:
            inputs: what the processor returns for a picture and an instruction (no labels).

        Returns:
            Absolute token ids; `processor.decode_actions` turns them into robot actions.
        """
        return greedy_actions(self, inputs)


def _positions(embeds: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
    """Positions from 1 at the first real token, so that pads on the left do not shift a sample."""
    length = embeds.shape[1]
    positions = torch.arange(1 + past, 1 + past + length, device=embeds.device).unsqueeze(0)
    if attention_mask is None or isinstance(attention_mask, dict):
        return positions
    leading_pads = (attention_mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
    return (positions - leading_pads).clamp_min(1)


AutoModel.register(SpatialVLAConfig, SpatialVLAForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(
    SpatialVLAConfig, SpatialVLAForConditionalGeneration, exist_ok=True
)
