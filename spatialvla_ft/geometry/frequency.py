"""Sinusoidal encoding of coordinates (as in NeRF, without the factor pi)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def frequency_encoding(x: Float[Tensor, "*B C"], num_freqs: int) -> Float[Tensor, "*B D"]:
    """Per channel [x, sin(2^0 x) .. sin(2^(n-1) x), cos(2^0 x) .. cos(2^(n-1) x)], in float32.

    Returns:
        D = C * (2 * num_freqs + 1), channel by channel.
    """
    bands = 2.0 ** torch.arange(num_freqs, dtype=torch.float32, device=x.device)
    phase = x.float().unsqueeze(-1) * bands
    return torch.cat((x.float().unsqueeze(-1), phase.sin(), phase.cos()), dim=-1).flatten(-2)
