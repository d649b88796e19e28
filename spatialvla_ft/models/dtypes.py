"""Weights in another floating-point type, without touching what is computed at loading."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
