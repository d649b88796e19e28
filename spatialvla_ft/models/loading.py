"""How a checkpoint becomes a model: what it says of itself, what the caller overrides.

A released checkpoint keeps part of what the model must know in `processor_config.json`; sdpa is
refused for the text tower here, before any weight is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from transformers.modeling_utils import PreTrainedModel

from .attention import refuse_kernel, text_kernel
from .configuration_spatialvla import SpatialVLAConfig
from .released import fill_from_processor_config

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


class CheckpointLoading(PreTrainedModel):
    """`from_pretrained` for released checkpoints and ours."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        compatibility: Literal["ours", "released"] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint, a released one included.

        Args:
            pretrained_model_name_or_path: folder or Hub repository.
            *args: passed on to transformers.
            compatibility: "released" restores numbers of the released code that are known to be
                wrong; None keeps what the checkpoint says of itself ("ours" where it says nothing).
            **kwargs: passed on to transformers (dtype, device_map, attn_implementation, ...), or
                overrides of config fields.
        """
        refuse_kernel(text_kernel(kwargs.get("attn_implementation")))
        if isinstance(kwargs.get("attn_implementation"), str):
            kwargs["attn_implementation"] = {"text_config": kwargs["attn_implementation"]}
        if kwargs.get("config") is None:
            hub = {k: kwargs[k] for k in HUB_KWARGS if k in kwargs}
            config, unused = SpatialVLAConfig.from_pretrained(
                pretrained_model_name_or_path,
                return_unused_kwargs=True,
                **{k: v for k, v in kwargs.items() if k not in LOADER_KWARGS},
                **hub,
            )
            unused = {k: v for k, v in unused.items() if k not in HUB_KWARGS}
            loader = {k: v for k, v in kwargs.items() if k in LOADER_KWARGS}
            kwargs = {"config": config, **hub, **loader, **unused}
        fill_from_processor_config(kwargs["config"], pretrained_model_name_or_path)
        if compatibility is not None:
            if compatibility not in ("ours", "released"):
                raise ValueError(
                    f"compatibility {compatibility!r} is unknown; use 'ours' or 'released'"
                )
            kwargs["config"].compatibility = compatibility
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kw: Any):
        """As in transformers, but sdpa is refused for the text tower."""
        refuse_kernel(text_kernel(attn_implementation))
        if isinstance(attn_implementation, str):
            attn_implementation = {"text_config": attn_implementation}
        return super().set_attn_implementation(attn_implementation, *args, **kw)
