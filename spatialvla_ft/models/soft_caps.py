"""Whether Gemma 2's two soft caps are in force: on attention scores, and on the logits.

A kernel or a library version that drops them changes every number a little and breaks nothing
visibly, so it is asked for by its effect.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.gemma2 import modeling_gemma2

from .modeling_spatialvla import SpatialVLAForConditionalGeneration


def missing_soft_caps(model: SpatialVLAForConditionalGeneration) -> list[str]:
    """What is wrong with the soft caps that the config asks for, in words; empty if nothing is."""
    text = model.config.text_config
    broken = []
    cap = text.attn_logit_softcapping
    attentions = [layer.self_attn for layer in model.language_model.model.layers]
    other = [i for i, a in enumerate(attentions) if a.attn_logit_softcapping != cap]
    if other:
        broken.append(
            f"layers {other} of the text tower bound their attention scores by "
            f"{attentions[other[0]].attn_logit_softcapping}, the config says {cap}"
        )
    kernel = text._attn_implementation
    if cap is not None and kernel == "eager" and not _kernel_caps(attentions[0]):
        broken.append(
            "the attention kernel 'eager' of this transformers version does not apply the soft cap "
            f"{cap} on attention scores"
        )
    final = text.final_logit_softcapping
    if final is not None:
        bounded = model.soft_cap(torch.tensor([1e6, -1e6])).tolist()
        if max(abs(bounded[0] - final), abs(bounded[1] + final)) > 1e-3 * final:
            broken.append(f"logits are not bounded by the config's final soft cap {final}")
    return broken


def _kernel_caps(attention: Any) -> bool:
    """Compare the kernel with softmax(cap * tanh(q k / cap)) v, on scores up to about 100."""
    generator = torch.Generator().manual_seed(0)
    groups, size = attention.num_key_value_groups, 8
    query = 6 * torch.randn(1, groups, 4, size, generator=generator)
    key, value = (6 * torch.randn(1, 1, 4, size, generator=generator) for _ in range(2))
    found: Tensor = modeling_gemma2.eager_attention_forward(
        attention, query, key, value, None, dropout=0.0, scaling=1.0, softcap=3.0
    )[0]
    scores = torch.tanh(query @ key.transpose(-1, -2) / 3.0) * 3.0
    wanted = (scores.softmax(-1) @ value).transpose(1, 2)
    return bool((found - wanted).abs().max() < 1e-3)
