"""How a checkpoint becomes a model: what it says of itself, what the caller overrides.

A released checkpoint keeps part of what the model must know in `processor_config.json`; sdpa is
refused for the text tower here, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from transformers.modeling_utils import PreTrainedModel

from .action_head import joined_weights
from .attention import refuse_kernel, text_kernel
from .configuration_spatialvla import SpatialVLAConfig
from .loading_report import check_loaded, readable_weights
from .released import fill_from_processor_config, refuse_no_place

TABLE = "spatial_embed_tokens.weight"
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


class CheckpointLoading(PreTrainedModel):
    """`from_pretrained` for released checkpoints and ours."""

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
        check_loaded(problems, pretrained_model_name_or_path, cure=INCOMPLETE)
        if hasattr(model, "vision_zoe_model"):  # loading makes all parameters trainable again
            model.vision_zoe_model.requires_grad_(False)
        return (model, info) if tell else model

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in transformers, always in the released layout.

        A spatial table that is a view of the text embeddings is written out, since safetensors
        refuses tensors that share memory; action rows that were trained apart from the head are
        joined to it.
        """
        weights = kwargs.get("state_dict")
        if weights is None and (self._table_is_shared() or self.action_head_rows is not None):
            weights = self.state_dict()
            weights[TABLE] = weights[TABLE].clone()
        if weights is not None:
            kwargs["state_dict"] = joined_weights(self.config, weights)
        super().save_pretrained(save_directory, *args, **kwargs)

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
