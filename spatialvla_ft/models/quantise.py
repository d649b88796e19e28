"""Frozen linear layers in four bits (NF4) under adapters, as QLoRA has them; by bitsandbytes.

Only the layers of Gemma 2 and SigLIP, which hold nearly all weights; the small ones between them,
the tables, the head and ZoeDepth stay as they are. An adapter is saved without its base, and put on
the original base, unquantised, when it is used or merged.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

LAYERS = r"(language_model\.model\.layers|vision_tower)\..+"
"""Names of the modules that are quantised, where they are linear."""


def quantise(model: nn.Module, compute: torch.dtype) -> int:
    """Replace the large linear layers by NF4 ones (in place); returns their number.

    Args:
        model: a SpatialVLA model, before adapters are attached to it.
        compute: type in which the layers multiply.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    library = _bitsandbytes()
    chosen = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(LAYERS, name)
    ]
    for name in chosen:
        parent, _, child = name.rpartition(".")
        linear = model.get_submodule(name)
        setattr(model.get_submodule(parent), child, _in_nf4(library, linear, compute))
    model.is_loaded_in_4bit = True  # by which peft takes its own layer for these
    return len(chosen)


def _in_nf4(library: Any, linear: nn.Linear, compute: torch.dtype) -> nn.Module:
    small = library.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute,
        quant_type="nf4",
        device="meta",
    )
    small.weight = library.nn.Params4bit(
        linear.weight.detach().contiguous(), requires_grad=False, quant_type="nf4"
    )
    small.bias = linear.bias
    return small.to(linear.weight.device)  # which is when it is quantised


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise ValueError(
            "model.quantisation: nf4 needs bitsandbytes, which is not installed: "
            "pip install 'spatialvla-ft[quantisation]', or leave model.quantisation out"
        ) from None
    return bitsandbytes
