"""Which attention kernels the text tower may run, and why not the others.

Gemma 2 bounds its attention scores with a soft cap. `eager` and `flex_attention` apply it; `sdpa`
cannot, and depending on the version transformers drops it without a word, which changes logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TEXT_KERNELS = ("eager", "flex_attention")

SDPA_REFUSED = (
    "attn_implementation 'sdpa' is refused for the text tower: it cannot apply Gemma 2's soft cap "
    "on attention scores and would silently change the logits; use 'eager', or 'flex_attention'"
)


def text_kernel(asked: str | dict[str, Any] | None) -> str | None:
    """The text tower's kernel in an `attn_implementation`; None where it says nothing of it.

    A dict may name it under "text_config", there again under "", or for all towers under "".
    """
    if isinstance(asked, dict):
        return text_kernel(asked.get("text_config", asked.get("")))
    return asked


def refuse_kernel(kernel: str | None) -> None:
    """ValueError for a kernel that the text tower must not run."""
    if kernel == "sdpa":
        raise ValueError(SDPA_REFUSED)
    if kernel is not None and kernel not in TEXT_KERNELS:
        raise ValueError(
            f"attn_implementation {kernel!r} is not known to apply Gemma 2's soft cap and our "
            f"prefix mask; the text tower takes one of {list(TEXT_KERNELS)}"
        )


def check_kernel(language_model: nn.Module, inputs_embeds: Tensor) -> None:
    """ValueError if the kernel in use cannot run these inputs; asked before every pass.

    It also catches a kernel that was set behind the model's back, on the text tower itself.
    """
    kernel = language_model.config._attn_implementation
    refuse_kernel(kernel)
    if kernel != "flex_attention" or inputs_embeds.device.type != "cpu":
        return
    learns = inputs_embeds.requires_grad or any(
        parameter.requires_grad for parameter in language_model.parameters()
    )
    if torch.is_grad_enabled() and learns:
        raise ValueError(
            "flex_attention has no backward on the CPU: train with attn_implementation='eager' "
            "there (the numbers are the same), or on a GPU; to predict, use torch.no_grad()"
        )
