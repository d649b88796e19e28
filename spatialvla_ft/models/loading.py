"""How a checkpoint becomes a model: what it says of itself, what the caller overrides.

A released checkpoint keeps part of what the model must know in `processor_config.json`; sdpa is
refused for the text tower here, before any weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from ..heads.registry import DEFAULT, build_head
from .action_tables import joined_weights
from .attention import refuse_kernel, text_kernel
from .checkpoint_files import (
    check_loaded,
    fill_from_processor_config,
    readable_weights,
    refuse_no_place,
    stored_grid,
)
from .configuration_spatialvla import SpatialVLAConfig

TABLE = "spatial_embed_tokens.weight"
HEAD = "action_head."
SIGLIP = re.compile(r"^(vision_tower\.)(?!vision_model\.)")
INCOMPLETE = (
    "The download is incomplete or its files are of several checkpoints: fetch it again. "
    "allow_incomplete=True takes it as it is, with random values for what is missing"
)

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
LOADER_KWARGS = (
    *HUB_KWARGS,
    "dtype",
    "torch_dtype",
    "device_map",
    "low_cpu_mem_usage",
    "attn_implementation",
    "quantization_config",
    "state_dict",
    "output_loading_info",
    "ignore_mismatched_sizes",
    "use_safetensors",
    "trust_remote_code",
    "key_mapping",
    "max_memory",
    "offload_folder",
    "tp_plan",
    "strict",
    "variant",
)


def missing_from(
    own: Mapping[str, Any], config: SpatialVLAConfig, missing: Iterable[str]
) -> list[str]:
    """Weights that a checkpoint should have held: not those that the caller's overrides added.

    Args:
        own: what the checkpoint's config.json says.
        config: what it was loaded with.
        missing: names of weights that it does not hold.
    """
    views = own.get("num_cameras", 1) * own.get("observation_window", 1)
    added = []
    if views == 1 and config.num_views > 1:
        added.append("observation_tokens.view_embedding")
    if own.get("proprio_dim") is None and config.proprio_dim is not None:
        added.append("observation_tokens.proprio_projector.")
    return [name for name in missing if not name.startswith(tuple(added))]


def head_is_another(own: Mapping[str, Any], config: SpatialVLAConfig) -> bool:
    """Whether the caller asks for an action head that the checkpoint does not hold.

    One of another kind always is; one of other settings where these give it other weights. What
    the file lacks is no matter here: a checkpoint that is incomplete has the head it says it has.
    """
    before, now = own.get("action_head"), config.action_head
    if before == now:
        return False
    kinds = [(settings or {}).get("kind", DEFAULT) for settings in (before, now)]
    if kinds[0] != kinds[1]:
        return True
    size, chunk = config.text_config.hidden_size, config.action_chunk_size
    with torch.device("meta"):
        heads = [build_head(settings, size, chunk) for settings in (before, now)]
    shapes = [
        {} if head is None else {name: value.shape for name, value in head.state_dict().items()}
        for head in heads
    ]
    return shapes[0] != shapes[1]


def released_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of released files, which the released code needs.

    transformers 5 drops the `vision_model.` of SigLIP's weights on reading, and puts it back only
    where the file that it read had it; a fresh model it writes without. All other names it gives
    back itself. Offloaded weights (on the meta device) it finds by their own names, so these stay.
    """
    return {
        name if getattr(value, "is_meta", False) else SIGLIP.sub(r"\1vision_model.", name): value
        for name, value in weights.items()
    }


class CheckpointLoading(PreTrainedModel):
    """`from_pretrained` for released checkpoints and ours, and `save_pretrained`."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        compatibility: Literal["ours", "released"] | None = None,
        allow_incomplete: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint, a released one included.

        Args:
            pretrained_model_name_or_path: folder or Hub repository.
            *args: passed on to transformers.
            compatibility: "released" restores numbers of the released code that are known to be
                wrong; None keeps what the checkpoint says of itself ("ours" where it says nothing).
            allow_incomplete: take a checkpoint that lacks weights (they are random then), or holds
                ones that are not part of the model; without it that is a ValueError.
            **kwargs: passed on to transformers (dtype, device_map, attn_implementation, ...), or
                overrides of config fields.

        Raises:
            ValueError: weights are missing, unknown, of another shape, or cannot be read.
        """
        refuse_no_place(pretrained_model_name_or_path)
        hub = {k: kwargs[k] for k in HUB_KWARGS if k in kwargs}
        refuse_kernel(text_kernel(kwargs.get("attn_implementation")))
        if isinstance(kwargs.get("attn_implementation"), str):
            kwargs["attn_implementation"] = {"text_config": kwargs["attn_implementation"]}
        if kwargs.get("config") is None:
            config, unused = SpatialVLAConfig.from_pretrained(
                pretrained_model_name_or_path,
                return_unused_kwargs=True,
                **{k: v for k, v in kwargs.items() if k not in LOADER_KWARGS},
                **hub,
            )
            unused = {k: v for k, v in unused.items() if k not in HUB_KWARGS}
            loader = {k: v for k, v in kwargs.items() if k in LOADER_KWARGS}
            kwargs = {"config": config, **hub, **loader, **unused}
        found = {k: v for k, v in hub.items() if k != "force_download"}
        fill_from_processor_config(kwargs["config"], pretrained_model_name_or_path, **found)
        if compatibility is not None:
            if compatibility not in ("ours", "released"):
                raise ValueError(
                    f"compatibility {compatibility!r} is unknown; use 'ours' or 'released'"
                )
            kwargs["config"].compatibility = compatibility
        tell = kwargs.pop("output_loading_info", False)
        accepted = ["mismatched_keys"] if kwargs.get("ignore_mismatched_sizes") else []
        accepted += ["missing_keys", "unexpected_keys"] if allow_incomplete else []
        # Shapes are refused below, with a message that says what to do.
        kwargs.update(ignore_mismatched_sizes=True, output_loading_info=True)
        with readable_weights(pretrained_model_name_or_path):
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        problems = {k: () if k in accepted else v for k, v in info.items()}
        own, _ = SpatialVLAConfig.get_config_dict(pretrained_model_name_or_path, **hub)
        problems["missing_keys"] = missing_from(own, model.config, problems["missing_keys"])
        if head_is_another(own, model.config):  # from random numbers, all of it
            head = model.new_head()
            if head is not None:
                head = head.to(model.device, model.dtype).train(model.training)
            model.action_head = head
            problems = {
                kind: [x for x in found if not (x if isinstance(x, str) else x[0]).startswith(HEAD)]
                for kind, found in problems.items()
            }
        check_loaded(problems, pretrained_model_name_or_path, cure=INCOMPLETE)
        model.action_grid = stored_grid(model.config, pretrained_model_name_or_path, **found)
        if hasattr(model, "vision_zoe_model"):  # loading makes all parameters trainable again
            model.vision_zoe_model.requires_grad_(False)
        return (model, info) if tell else model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As in transformers, always in the released layout, wherever the model came from.

        Weights have their released names. A spatial table that is a view of the text embeddings is
        written out, since safetensors refuses tensors that share memory; action rows that were
        trained apart from the head are joined to it.
        """
        # Of a model that carries an adapter transformers picks the adapter's weights, by names.
        if not self._hf_peft_config_loaded:
            if state_dict is None:
                state_dict = self.state_dict()
                if self._table_is_shared():
                    state_dict[TABLE] = state_dict[TABLE].clone()
            state_dict = released_names(joined_weights(self.config, state_dict))
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def _table_is_shared(self) -> bool:
        table = getattr(self, "spatial_embed_tokens", None)
        if table is None:
            return False
        memory = table.weight.untyped_storage().data_ptr()
        others = (self.get_input_embeddings(), self.get_output_embeddings())
        return any(memory == other.weight.untyped_storage().data_ptr() for other in others)

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kw: Any):
        """As in transformers, but sdpa is refused for the text tower."""
        refuse_kernel(text_kernel(attn_implementation))
        if isinstance(attn_implementation, str):
            attn_implementation = {"text_config": attn_implementation}
        return super().set_attn_implementation(attn_implementation, *args, **kw)
