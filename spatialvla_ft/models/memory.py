"""What makes a model take less memory: smaller types, recomputed activations, four-bit layers.

Weights are cast without touching what is computed at loading. Four bits (NF4) are for frozen linear
layers under adapters, as QLoRA has them, by bitsandbytes: only the layers of Gemma 2 and SigLIP,
which hold nearly all weights; the small ones between them, the tables, the head and ZoeDepth stay
as they are. An adapter is saved without its base, and put on the original base, unquantised, when
it is used or merged.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from .modeling_spatialvla import SpatialVLAForConditionalGeneration


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what a checkpoint stores (in place).

    `Module.to` would also round buffers that are computed at loading, such as rotary frequencies.
    """
    for module in model.modules():
        stored: list[Tensor] = [*module.parameters(recurse=False)]
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and buffer.is_floating_point():
                stored.append(buffer)
        for tensor in stored:
            tensor.data = tensor.data.to(dtype)


def cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters that are not trained (in place); trained ones keep their precision."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def checkpoint_activations(model: SpatialVLAForConditionalGeneration) -> None:
    """Keep only the inputs of each layer of the language model and the vision tower (in training).

    Losses and gradients stay what they are; a step takes about a third longer. ZoeDepth keeps
    nothing in any case, since it is not trained.
    """
    for part in (model.language_model, model.vision_tower):
        # transformers renamed the method; the old name warns where the new one exists.
        enable = getattr(part, "activation_checkpointing_enable", None)
        (enable or part.gradient_checkpointing_enable)({"use_reentrant": False})


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
